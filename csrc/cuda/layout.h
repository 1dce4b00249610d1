// How the features of a row are laid out over the lanes of a warp.
//
// A row of H heads of C channels is read in vectors of V values. A head gets a power of two of
// lanes, so that a butterfly of shuffles sums over it; a row gets a group of lanes, each with K
// vectors; small rows share a warp. What does not fit is split into tiles of whole heads, which
// blocks take on by the slow dimension of the grid, or, for a head wider than the lanes, into parts
// that one group goes through in turn.
#pragma once
#include <cstdint>
#include <initializer_list>

#include "../core/host_device.h"
#include "../core/params.h"

namespace gatkernels {
namespace cuda {

struct Layout {
  int heads, channels;
  int tile_heads;  // heads of a tile
  int tiles;
  int parts;       // of a head; more than one only where a tile is one head
  int log2_slots;  // vectors of a head, padded
  int log2_group;  // lanes of a row
  int log2_heads;  // heads of a tile, padded; no more than the lanes of a row

  GK_HOST_DEVICE int slots() const { return 1 << log2_slots; }
  GK_HOST_DEVICE int group() const { return 1 << log2_group; }
  GK_HOST_DEVICE int padded_heads() const { return 1 << log2_heads; }
  GK_HOST_DEVICE int width() const { return heads * channels; }
};

// Heads of a tile, so that what the edges of a block leave in shared memory stays below 48 KB.
constexpr int kMostHeads = 16;

inline int log2_at_least(int64_t n) {
  int k = 0;
  while ((int64_t(1) << k) < n) ++k;
  return k;
}

inline Layout make_layout(const Shape& shape, int values, int vectors,
                          int64_t most_heads = kMostHeads) {
  Layout l{};
  l.heads = int(shape.heads);
  l.channels = int(shape.channels);
  const int64_t places = 32 * vectors;
  const int64_t needed = (shape.channels + values - 1) / values;
  l.parts = needed > places ? int((needed + places - 1) / places) : 1;
  l.log2_slots = l.parts > 1 ? log2_at_least(places) : log2_at_least(needed);
  int64_t heads = places >> l.log2_slots;
  if (heads > kMostHeads) heads = kMostHeads;
  if (heads > most_heads) heads = most_heads;
  if (heads > shape.heads) heads = shape.heads;
  if (heads < 1) heads = 1;
  l.tile_heads = int(heads);
  l.tiles = int((shape.heads + heads - 1) / heads);
  l.log2_heads = log2_at_least(heads);
  const int64_t used = heads << l.log2_slots;
  l.log2_group = log2_at_least((used + vectors - 1) / vectors);
  for (const int least : {3, l.log2_slots < 5 ? l.log2_slots : 5, l.log2_heads}) {
    if (l.log2_group < least) l.log2_group = least;
  }
  return l;
}

// The size of a group's board: the nodes at the other ends and the edges' ids [pitch], and tables
// [heads, pitch] of what the lanes that score leave for those that sum. Four edges are read in one
// access.
struct BoardSize {
  int pitch, heads;

  GK_HOST_DEVICE explicit BoardSize(const Layout& l)
      : pitch(l.group() + 4),  // the gap keeps heads in different banks
        heads(l.padded_heads()) {}
  template <class A>
  GK_HOST_DEVICE int bytes(int tables) const {
    return pitch * (2 * int(sizeof(int32_t)) + tables * heads * int(sizeof(A)));
  }
};

}  // namespace cuda
}  // namespace gatkernels
