// One call of attention as the kernels take it: sizes, and where each array's numbers lie.
//
// B examples (all batch axes), T queries, S keys, H query heads, K KV heads, G = H / K, D and Dv the widths of keys and
// values. All arrays are dense and row-major; an axis of 1 stands for all entries of that axis, with a stride of 0.
//
// This header is compiled once for each instruction set. So its functions are always inlined: the linker must not share
// one compiled copy between instruction sets.
#pragma once

#include <cstddef>
#include <cstdint>

#define JAXATTN_INLINE static inline __attribute__((always_inline))

namespace jaxattn {

constexpr int kMaxBatchRank = 8;
constexpr int kMaxMaskOps = 16;

// The sizes of blocks, for all instruction sets, because tasks are counted by them.
constexpr int kGroup = 12;            // rows that are skipped or computed together: one or two tiles of registers
constexpr int kRows = 11 * kGroup;    // forward: of a query block, at most
constexpr int kKeys = 256;            // forward: of a key block
constexpr int kKeyRows = 10 * kGroup;  // backward: of a key block
constexpr int kQueries = 256;         // backward: of a query block

enum class Type { kFloat32, kBFloat16, kFloat16 };

struct Operand {
  const char* data = nullptr;
  int64_t batch[kMaxBatchRank] = {};  // strides, in elements
  int64_t head = 0, row = 0, column = 0;
};

// A mask in postfix order: `kAnd` and `kOr` combine the two results before them.
enum class MaskKind { kCausal, kWindow, kLengths, kSegments, kArray, kAnd, kOr, kChunked };

struct MaskOp {
  MaskKind kind;
  int64_t size;           // of a window or a chunk
  int64_t right;          // how many keys after its own a query of a window may attend to
  Operand first, second;  // offsets; lengths; ids and ids of the keys; booleans
};

struct Problem {
  Type type;  // of query, key, value, context and their gradients; all else is float32 or int32
  int batch_rank;
  int64_t batch_shape[kMaxBatchRank];
  int64_t B, T, S, H, K, D, Dv;
  // score = query · key if the call is plain, or cap(score_scale * query · key) + bias; weight = 2 ** ((score - largest)
  // * rate - log_total). See ../softmax.py.
  float rate, score_scale;
  float soft_cap;  // 0 is none
  float query_factor, key_factor;  // of their gradients
  Operand query, key, value, bias;
  // The bias has one number for each diagonal of the scores: its row stride is -1, its column stride 1, and its data
  // begin at entry (0, 0). So does its gradient.
  bool bias_is_diagonal;
  Operand row_bits, column_bits;  // of dropout
  uint32_t drop_below;            // an entry is dropped if its bits are less
  float keep_factor;              // 1 / (1 - rate)
  int mask_ops;
  MaskOp mask[kMaxMaskOps];
  bool mask_is_range;  // each query attends to one range of keys
  bool has_chunks;     // the range is more than a sum of the query and a number

  // Results of the forward pass, arguments of the backward pass: (B, T, H, Dv), and (B, H, T) twice.
  char* context;
  float *largest, *log_total;
  Operand context_in, gradient, largest_in, log_total_in;
  Operand lse_gradient;  // of the natural logsumexp; may be missing
  // Results of the backward pass.
  char *query_gradient, *key_gradient, *value_gradient;
  float* bias_gradient;
  Operand bias_gradient_strides;
  // How tasks share the work, by shapes alone: `splits` tasks for each example and KV head.
  int64_t splits;
  float* partial;  // (splits, B, H, ...): what the tasks of a split head add up
};

struct BatchIndex {
  int64_t at[kMaxBatchRank];
};

JAXATTN_INLINE BatchIndex batch_index(const Problem& p, int64_t b) {
  BatchIndex index = {};
  for (int axis = p.batch_rank - 1; axis >= 0; --axis) {
    index.at[axis] = b % p.batch_shape[axis];
    b /= p.batch_shape[axis];
  }
  return index;
}

// The number of elements before an example's head.
JAXATTN_INLINE int64_t offset(const Operand& array, const BatchIndex& b, int rank, int64_t head) {
  int64_t sum = head * array.head;
  for (int axis = 0; axis < rank; ++axis) sum += b.at[axis] * array.batch[axis];
  return sum;
}

JAXATTN_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
JAXATTN_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
JAXATTN_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
JAXATTN_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// What each instruction set offers. A task is one share of the work; tasks may run in any order, at the same time.
struct Kernels {
  const char* name;
  int64_t (*forward_tasks)(const Problem&);
  size_t (*forward_scratch)(const Problem&);  // floats, for one thread
  void (*forward)(const Problem&, int64_t task, float* scratch);
  int64_t (*decode_tasks)(const Problem&);
  size_t (*decode_scratch)(const Problem&);
  size_t (*decode_partial)(const Problem&);  // floats, for the call
  void (*decode)(const Problem&, int64_t task, float* scratch);
  void (*decode_join)(const Problem&, int64_t task, float* scratch);
  int64_t (*backward_tasks)(const Problem&);
  size_t (*backward_scratch)(const Problem&);
  size_t (*backward_partial)(const Problem&);
  void (*backward)(const Problem&, int64_t task, float* scratch);
  void (*backward_join)(const Problem&, int64_t task, float* scratch);
  int64_t (*bias_tasks)(const Problem&);
  size_t (*bias_scratch)(const Problem&);
  void (*bias)(const Problem&, int64_t task, float* scratch);
};

}  // namespace jaxattn
