// The contract in C++: what a kernel reads and writes. No framework, only pointers and sizes.
#pragma once
#include <cstdint>

#include "scores.h"

namespace gatkernels {

enum class DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };

// What a launcher returns; bindings turn anything but kOk into an exception.
enum class Status : int { kOk = 0, kOutOfMemory = 1 };

// Edges grouped by row: by destination (CSR) forward, by source (CSC) backward.
struct Edges {
  const int64_t* rowptr;  // [rows + 1]
  const int32_t* col;     // [edges], the node at the other end
  const int32_t* eid;     // [edges], place in the user's order
  const int32_t* draw;    // [edges], what dropout draws by, unsigned; null: eid
  int64_t rows;
};

// Work on the rows of a GPU graph, as gatkernels/backends/schedule.py makes it. Rows of more than
// chunk edges, hubs, are cut into chunks of so many.
struct Schedule {
  const int32_t* order;      // [rows]; null: as they are numbered
  const int32_t* chunk_row;  // [chunks], -1 where there is none
  const int64_t* chunk_end;  // [rows], chunks up to the end of each row
  int64_t chunks;
  int64_t chunk;
};

// A matrix of so many rows, which are contiguous and `stride` elements apart.
struct Matrix {
  void* data;
  int64_t stride;
  int64_t rows;
};

// Philox dropout: an edge and head is kept where its word >= threshold, and then times scale; the
// rule is gatkernels/ops/philox.py's.
struct Dropout {
  const int64_t* seed;  // null: no dropout
  uint32_t threshold;
  double scale;
  int64_t first_head;  // what the call's head 0 is to the draws, where a call has some of the heads
};

struct Shape {
  DType dtype;
  int threads;
  int64_t heads;
  int64_t channels;
};

// What the scores of an edge come from, forward and backward alike.
struct GatScores {
  Matrix src;        // [Ns, H]
  Matrix dst;        // [Nd, H]
  const void* edge;  // [E, H] in the user's order, or null
  double negative_slope;
  Dropout dropout;
};

// Scores that come from features: x a of each head, a being att_src or att_dst [H * C] in the dtype
// of sums.
struct NodeScores {
  Shape shape;
  int64_t rows;
  Matrix x;  // [rows, H * C]
  const void* att_src;
  const void* att_dst;  // or null
  void* score_src;      // [rows, H]
  void* score_dst;      // [rows, H], with att_dst
};

// x, out and gradients of features are of the shape's dtype; scores, statistics and sums (out_pos
// too) are float64 for float64 and float32 for all others.
struct GatForward {
  Shape shape;
  Edges csr;
  GatScores scores;
  Matrix x;       // [Ns, H * C]
  void* out;      // [Nd, H * C]
  void* out_pos;  // [Nd, H * C] sums over edges of positive score, or null (no backward to come)
  void* stats;    // [Nd, 3, H]: row maximum, 1 / sum, share of positive edges; or null
};

// alpha [E, H] in the user's order, after dropout, from the statistics that a forward left.
struct GatAlpha {
  Shape shape;  // without channels
  Edges csr;
  GatScores scores;
  const void* stats;
  void* alpha;
};

// A backward comes in two: what a destination computes of its own row, and what a source computes
// of the rows and fields of the destinations it has edges to.
struct GatDestinations {
  Shape shape;
  Edges csr;
  GatScores scores;
  Matrix grad;             // [Nd, H * C]
  const void* out;         // [Nd, H * C]
  const void* out_pos;     // [Nd, H * C]
  const void* stats;       // [Nd, 3, H]
  const void* alpha;       // [E, H] after dropout, with grad_alpha
  const void* grad_alpha;  // [E, H], or null
  void* fields;     // [Nd, 4 * H] as the backend likes: score_dst, row maximum, 1 / sum, delta
  Matrix grad_dst;  // [Nd, H]
};

struct GatSources {
  Shape shape;
  Edges csc;
  GatScores scores;        // dst is not read
  Matrix x;                // [Ns, H * C]
  Matrix grad;             // [Nd, H * C]
  const void* grad_alpha;  // [E, H], or null
  const void* fields;      // [Nd, 4 * H] of GatDestinations
  Matrix grad_x;           // [Ns, H * C]
  Matrix grad_src;         // [Ns, H]
  Matrix grad_dst;         // [Nd, H] of GatDestinations, read with att_dst
  void* grad_edge;         // [E, H] in the user's order, or null
  // Where scores are NodeScores of x: grad_x includes what comes through them, and grad_att
  // [1 or 2, H * C] is the gradient of att_src and att_dst. With att_dst, sources are destinations.
  const void* att_src;  // or null
  const void* att_dst;  // or null
  void* grad_att;       // with att_src
};

// Scores that are read from rows of features (scores.h): what they come from, besides x of an
// edge's source.
struct RowwiseScores {
  Matrix dst;        // [Nd, H * C]
  const void* att;   // [H * C], in the dtype of sums
  const void* edge;  // [E, H * C] in the user's order, or null
  double negative_slope;
  Dropout dropout;
};

struct RowwiseForward {
  Shape shape;
  Edges csr;
  RowScorer scorer;
  RowwiseScores scores;
  Matrix x;     // [Ns, H * C]
  void* out;    // [Nd, H * C]
  void* stats;  // [Nd, 3, H]: row maximum, 1 / sum, unused; or null
};

struct RowwiseAlpha {
  Shape shape;
  Edges csr;
  RowScorer scorer;
  RowwiseScores scores;
  Matrix x;
  const void* stats;
  void* alpha;  // [E, H] in the user's order, after dropout
};

// In two, as GAT's.
struct RowwiseDestinations {
  Shape shape;
  Edges csr;
  RowScorer scorer;
  RowwiseScores scores;
  Matrix x;                // [Ns, H * C]
  Matrix grad;             // [Nd, H * C]
  const void* out;         // [Nd, H * C]
  const void* stats;       // [Nd, 3, H]
  const void* alpha;       // [E, H] after dropout, with grad_alpha
  const void* grad_alpha;  // [E, H], or null
  void* fields;            // [Nd, 4 * H] as the backend likes: row maximum, 1 / sum, delta
  void* grad_dst;          // [Nd, H * C]
  void* grad_att;          // [H * C], in the dtype of sums
  void* grad_edge;         // [E, H * C] in the user's order, or null
};

struct RowwiseSources {
  Shape shape;
  Edges csc;
  RowScorer scorer;
  RowwiseScores scores;
  Matrix x;                // [Ns, H * C]
  Matrix grad;             // [Nd, H * C]
  const void* grad_alpha;  // [E, H], or null
  const void* fields;      // [Nd, 4 * H] of RowwiseDestinations
  void* grad_src;          // [Ns, H * C]
};

// Scores that are dot products, <q_i, k_j> of `channels` each and <edge_query_i, edge_e> of
// `features` (0 without edge), times scale.
struct DotScores {
  Matrix q;           // [Nd, H * C]
  Matrix k;           // [Ns, H * C]
  const void* edge;   // [E, F] in the user's order, shared by all heads; or null
  Matrix edge_query;  // [Nd, H * F], with edge
  int64_t features;
  double scale;
  Dropout dropout;
};

// Values [Ns, H * D]; D need not be C.
struct DotValues {
  Matrix rows;
  int64_t channels;
};

struct DotForward {
  Shape shape;
  Edges csr;
  DotScores scores;
  DotValues v;
  void* out;       // [Nd, H * D]
  void* edge_out;  // [Nd, H * F], with edge
  void* stats;     // [Nd, 3, H]: row maximum, 1 / sum, unused; or null
};

struct DotAlpha {
  Shape shape;
  Edges csr;
  DotScores scores;
  const void* stats;
  void* alpha;  // [E, H] in the user's order, after dropout
};

// Gradients of what a DotForward returned.
struct DotOutGrads {
  Matrix out;         // [Nd, H * D]
  Matrix edge_out;    // [Nd, H * F], with edge
  const void* alpha;  // [E, H], or null
};

struct DotDestinations {
  Shape shape;
  Edges csr;
  DotScores scores;
  DotValues v;
  DotOutGrads grads;
  const void* out;        // [Nd, H * D]
  const void* edge_out;   // [Nd, H * F], with edge
  const void* stats;      // [Nd, 3, H]
  const void* alpha;      // [E, H] after dropout, with its gradient
  void* fields;           // [Nd, 4 * H] as the backend likes: row maximum, 1 / sum, delta
  void* grad_q;           // [Nd, H * C]
  void* grad_edge;        // [E, F] in the user's order, or null
  void* grad_edge_query;  // [Nd, H * F], with edge
};

struct DotSources {
  Shape shape;
  Edges csc;
  DotScores scores;
  DotValues v;
  DotOutGrads grads;
  const void* fields;  // [Nd, 4 * H] of DotDestinations
  void* grad_k;        // [Ns, H * C]
  void* grad_v;        // [Ns, H * D]
};

// out = S x, in float32 or float64. S in CSR; or in CSC with `order`, the place of each value.
struct SparseProduct {
  DType dtype;
  int threads;
  const int64_t* rowptr;  // [rows + 1]
  const int32_t* col;     // [values]
  const int32_t* order;   // [values], or null: in the order of col
  int64_t rows;
  int64_t width;
  const void* values;
  Matrix x;   // [columns, width]
  void* out;  // [rows, width]
};

// out = S^T x, in float32 or float64, for an S in CSR with few columns and many values in each.
struct SparseTransposedProduct {
  DType dtype;
  int threads;
  const int64_t* rowptr;  // [rows + 1]
  const int32_t* col;     // [values]
  int64_t rows;
  int64_t columns;
  int64_t width;
  const void* values;
  Matrix x;   // [rows, width]
  void* out;  // [columns, width]
};

// Of `count` contiguous values, in float32 or float64: dropped(x), dropped(elu(x)), or the gradient
// of the latter, dropped(grad) elu'(x).
enum class Activation { kNone, kElu, kEluGrad };
struct FeatureDropout {
  DType dtype;
  int threads;
  int64_t count;
  Dropout dropout;
  Activation activation;
  const void* x;
  const void* grad;
  void* out;
};

}  // namespace gatkernels
