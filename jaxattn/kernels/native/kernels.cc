// The kernels, compiled once for each instruction set: JAXATTN_ISA is its name.
#include "backward.h"
#include "decode.h"
#include "forward.h"

namespace jaxattn {
namespace JAXATTN_ISA {

#define JAXATTN_BY_TYPE(function)                                            \
  static void function##_any(const Problem& p, int64_t task, float* scratch) { \
    switch (p.type) {                                                        \
      case Type::kFloat32: return function##_task<Float32>(p, task, scratch);  \
      case Type::kBFloat16: return function##_task<BFloat16>(p, task, scratch); \
      case Type::kFloat16: return function##_task<Float16>(p, task, scratch);  \
    }                                                                        \
  }
JAXATTN_BY_TYPE(forward)
JAXATTN_BY_TYPE(decode)
JAXATTN_BY_TYPE(decode_join)
JAXATTN_BY_TYPE(backward)
JAXATTN_BY_TYPE(backward_join)
JAXATTN_BY_TYPE(bias)

}  // namespace JAXATTN_ISA

#define JAXATTN_NAME_OF(isa) #isa
#define JAXATTN_NAME(isa) JAXATTN_NAME_OF(isa)
#define JAXATTN_KERNELS_OF(isa) kernels_##isa
#define JAXATTN_KERNELS(isa) JAXATTN_KERNELS_OF(isa)

const Kernels& JAXATTN_KERNELS(JAXATTN_ISA)() {
  using namespace JAXATTN_ISA;
  static const Kernels kernels = {
      JAXATTN_NAME(JAXATTN_ISA), forward_tasks, forward_scratch, forward_any,    decode_tasks,
      decode_scratch,            decode_partial, decode_any,      decode_join_any, backward_tasks,
      backward_scratch,          backward_partial, backward_any,  backward_join_any, bias_tasks,
      bias_scratch,              bias_any,
  };
  return kernels;
}

}  // namespace jaxattn
