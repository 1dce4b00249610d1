// What a class of tensors says through DLPack's table of functions (1.3, DLPackExchangeAPI): where
// memory, sizes and strides are, which methods of a tensor take longer to say. Newer releases of
// torch have it.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>

namespace gatkernels::dlpack {

struct Tensor {
  void* data;
  int32_t device_type, device_id;
  int32_t dimensions;
  uint8_t type_code, type_bits;
  uint16_t type_lanes;
  const int64_t *shape, *strides;
  uint64_t byte_offset;
};

// Fills a view that holds as long as the tensor does; -1 with Python's error set.
using ViewOf = int (*)(void* tensor, Tensor* view);

struct Table {
  uint32_t major, minor;
  void* previous;
  void *allocate, *from_tensor, *to_tensor;
  ViewOf view_of;
};

// Null where the class has no such table, or one of another layout.
inline ViewOf view_of(pybind11::handle tensor_class) {
  constexpr const char* kAttribute = "__dlpack_c_exchange_api__";
  if (!pybind11::hasattr(tensor_class, kAttribute)) return nullptr;
  const pybind11::object found = tensor_class.attr(kAttribute);
  constexpr const char* kName = "dlpack_exchange_api";
  if (!PyCapsule_IsValid(found.ptr(), kName)) return nullptr;
  const auto* table = static_cast<const Table*>(PyCapsule_GetPointer(found.ptr(), kName));
  return table->major == 1 ? table->view_of : nullptr;
}

}  // namespace gatkernels::dlpack
