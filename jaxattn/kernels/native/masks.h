// Which keys a query may attend to: the range that bounds them, whole tiles at once, or entry by entry.
#pragma once

#include "simd.h"

namespace jaxattn::JAXATTN_ISA {

// Whether scores are more than query · key.
JAXATTN_INLINE bool has_logits(const Problem& p) { return p.bias.data || p.soft_cap > 0; }

// Scale and cap n products of a query and a key; `slopes` get the derivatives of the cap.
inline void cap_row(const Problem& p, int64_t n, float* row, float* slopes) {
  const float factor = p.score_scale / p.soft_cap;
  auto cap = [&](float* at, float* slopes_at) {
    Floats value = tanh(load(at) * factor);
    if (slopes_at) store(slopes_at, 1.0f - value * value);
    store(at, value * p.soft_cap);
  };
  int64_t whole = n / VL * VL, rest = n - whole;
  for (int64_t i = 0; i < whole; i += VL) cap(row + i, slopes ? slopes + i : nullptr);
  if (rest == 0) return;
  float last[VL] = {}, last_slopes[VL];
  std::memcpy(last, row + whole, rest * sizeof(float));
  cap(last, last_slopes);
  std::memcpy(row + whole, last, rest * sizeof(float));
  if (slopes) std::memcpy(slopes + whole, last_slopes, rest * sizeof(float));
}

constexpr int kRun = kKeys > kQueries ? kKeys : kQueries;  // the most entries that are tested at once

struct Range {
  int64_t begin, end;
};

// A mask of one example and head.
struct MaskView {
  const MaskOp* ops;
  int count;
  const char* first[kMaxMaskOps];
  const char* second[kMaxMaskOps];
  // If the mask is a range: query t attends to the keys in both `all` and t + `shifted`.
  bool is_range;
  Range all, shifted;
};

JAXATTN_INLINE bool overlap(Range a, Range b) { return a.begin < b.end && b.begin < a.end; }
JAXATTN_INLINE Range common(Range a, Range b) { return {most(a.begin, b.begin), least(a.end, b.end)}; }

JAXATTN_INLINE int32_t int_at(const char* data, int64_t i) { return reinterpret_cast<const int32_t*>(data)[i]; }

constexpr int64_t kFar = int64_t{1} << 40;

JAXATTN_INLINE MaskView mask_view(const Problem& p, const BatchIndex& b, int64_t head) {
  MaskView view = {p.mask, p.mask_ops, {}, {}, p.mask_is_range && !p.has_chunks, {0, p.S}, {-kFar, kFar}};
  for (int i = 0; i < p.mask_ops; ++i) {
    const MaskOp& op = p.mask[i];
    int64_t size = op.kind == MaskKind::kArray ? 1 : 4;
    if (op.first.data) view.first[i] = op.first.data + size * offset(op.first, b, p.batch_rank, head);
    if (op.second.data) view.second[i] = op.second.data + size * offset(op.second, b, p.batch_rank, head);
    if (!view.is_range || op.kind == MaskKind::kAnd) continue;
    int64_t position = int_at(view.first[i], 0);
    if (op.kind == MaskKind::kLengths) view.all.end = least(view.all.end, most(position, 0));
    int64_t right = op.kind == MaskKind::kWindow ? op.right : 0;
    if (op.kind != MaskKind::kLengths) view.shifted.end = least(view.shifted.end, position + 1 + right);
    if (op.kind == MaskKind::kWindow) view.shifted.begin = most(view.shifted.begin, position + 1 - op.size);
  }
  return view;
}

JAXATTN_INLINE bool has_window(const MaskView& mask) { return mask.is_range && mask.shifted.begin > -kFar; }

// The first key of the chunk of a position.
JAXATTN_INLINE int64_t chunk_begin(int64_t position, int64_t size) {
  int64_t rest = position % size;
  return position - (rest < 0 ? rest + size : rest);
}

// The range outside which the query may attend to no key; without kOr, kSegments and kArray it attends to all inside.
inline Range bounding_range(const MaskView& mask, int64_t t, int64_t S) {
  Range stack[kMaxMaskOps + 1] = {{0, S}};
  int depth = 0;
  for (int i = 0; i < mask.count; ++i) {
    const MaskOp& op = mask.ops[i];
    if (op.kind == MaskKind::kAnd || op.kind == MaskKind::kOr) {
      Range b = stack[--depth], a = stack[depth - 1];
      Range joined = {most(a.begin, b.begin), least(a.end, b.end)};
      if (op.kind == MaskKind::kOr) {
        joined = {least(a.begin, b.begin), most(a.end, b.end)};
        if (a.begin >= a.end) joined = b;
        if (b.begin >= b.end) joined = a;
      }
      stack[depth - 1] = joined;
      continue;
    }
    Range range = {0, S};
    if (op.kind == MaskKind::kLengths) range.end = int_at(mask.first[i], 0);
    if (op.kind == MaskKind::kCausal || op.kind == MaskKind::kWindow) range.end = t + int_at(mask.first[i], 0) + 1;
    if (op.kind == MaskKind::kWindow) range.begin = range.end - op.size, range.end += op.right;
    if (op.kind == MaskKind::kChunked) {
      range.begin = chunk_begin(t + int_at(mask.first[i], 0), op.size), range.end = range.begin + op.size;
    }
    stack[depth++] = {most(range.begin, 0), least(range.end, S)};
  }
  return stack[0];
}

JAXATTN_INLINE Range key_range(const MaskView& mask, int64_t t, int64_t S) {
  if (!mask.is_range) return bounding_range(mask, t, S);
  return common(mask.all, {t + mask.shifted.begin, t + mask.shifted.end});
}

enum Coverage { kNone = 0, kSome = 1, kAll = 2 };

// Whether the ids of a tile's queries and keys can be equal, and whether they all are.
inline Coverage segments_coverage(const MaskOp& op, const char* ids, const char* key_ids, Range t, Range s) {
  int32_t low = INT32_MAX, high = INT32_MIN, key_low = INT32_MAX, key_high = INT32_MIN;
  for (int64_t i = t.begin; i < t.end; ++i) {
    int32_t id = int_at(ids, i * op.first.row);
    low = id < low ? id : low, high = id > high ? id : high;
  }
  for (int64_t i = s.begin; i < s.end; ++i) {
    int32_t id = int_at(key_ids, i * op.second.column);
    key_low = id < key_low ? id : key_low, key_high = id > key_high ? id : key_high;
  }
  if (low > key_high || high < key_low) return kNone;
  return low == high && key_low == key_high ? kAll : kSome;
}

inline Coverage array_coverage(const MaskOp& op, const char* allowed, Range t, Range s) {
  bool any = false, all = true;
  for (int64_t i = t.begin; i < t.end; ++i) {
    for (int64_t j = s.begin; j < s.end; ++j) {
      bool is = allowed[i * op.first.row + j * op.first.column];
      any |= is, all &= is;
    }
    if (any && !all) return kSome;
  }
  return all ? kAll : any ? kSome : kNone;
}

// How much of a tile the mask leaves.
inline Coverage coverage(const MaskView& mask, Range t, Range s) {
  Coverage stack[kMaxMaskOps + 1] = {kAll};
  int depth = 0;
  for (int i = 0; i < mask.count; ++i) {
    const MaskOp& op = mask.ops[i];
    if (op.kind == MaskKind::kAnd || op.kind == MaskKind::kOr) {
      Coverage b = stack[--depth], a = stack[depth - 1];
      stack[depth - 1] = (op.kind == MaskKind::kAnd) == (a < b) ? a : b;  // the smaller, or the larger
      continue;
    }
    Coverage found = kSome;
    if (op.kind == MaskKind::kSegments) found = segments_coverage(op, mask.first[i], mask.second[i], t, s);
    if (op.kind == MaskKind::kArray) found = array_coverage(op, mask.first[i], t, s);
    if (op.kind == MaskKind::kLengths) {
      int64_t length = int_at(mask.first[i], 0);
      found = s.begin >= length ? kNone : s.end <= length ? kAll : kSome;
    }
    if (op.kind == MaskKind::kCausal || op.kind == MaskKind::kWindow) {
      int64_t shift = int_at(mask.first[i], 0), size = op.kind == MaskKind::kWindow ? op.size : INT64_MAX / 2;
      int64_t right = shift + (op.kind == MaskKind::kWindow ? op.right : 0);
      bool none = s.begin > t.end - 1 + right || s.end - 1 <= t.begin + shift - size;
      bool all = s.end - 1 <= t.begin + right && s.begin > t.end - 1 + shift - size;
      found = none ? kNone : all ? kAll : kSome;
    }
    if (op.kind == MaskKind::kChunked) {
      int64_t shift = int_at(mask.first[i], 0);
      int64_t first = chunk_begin(t.begin + shift, op.size), last = chunk_begin(t.end - 1 + shift, op.size);
      bool none = s.begin >= last + op.size || s.end <= first;
      bool all = first == last && s.begin >= first && s.end <= first + op.size;
      found = none ? kNone : all ? kAll : kSome;
    }
    stack[depth++] = found;
  }
  return stack[0];
}

// Which of n <= kRun entries may be attended to, from query t and key s on, along the keys or along the queries.
template <bool kAlongKeys>
inline void test_entries(const MaskView& mask, int64_t t, int64_t s, int64_t n, int32_t* allowed) {
  int32_t stack[kMaxMaskOps / 2 + 1][kRun];
  int depth = 0;
  for (int i = 0; i < mask.count; ++i) {
    const MaskOp& op = mask.ops[i];
    int32_t* top = stack[depth];
    if (op.kind == MaskKind::kAnd || op.kind == MaskKind::kOr) {
      int32_t *a = stack[depth - 2], *b = stack[depth - 1];
      bool both = op.kind == MaskKind::kAnd;
      for (int64_t j = 0; j < n; ++j) a[j] = both ? a[j] & b[j] : a[j] | b[j];
      --depth;
      continue;
    }
    const char *first = mask.first[i], *second = mask.second[i];
    if (op.kind == MaskKind::kSegments) {
      for (int64_t j = 0; j < n; ++j) {
        int64_t query = kAlongKeys ? t : t + j, key = kAlongKeys ? s + j : s;
        top[j] = int_at(first, query * op.first.row) == int_at(second, key * op.second.column) ? -1 : 0;
      }
    } else if (op.kind == MaskKind::kArray) {
      int64_t step = kAlongKeys ? op.first.column : op.first.row;
      const char* from = first + t * op.first.row + s * op.first.column;
      for (int64_t j = 0; j < n; ++j) top[j] = from[j * step] ? -1 : 0;
    } else if (op.kind == MaskKind::kChunked) {
      int64_t shift = int_at(first, 0);
      for (int64_t j = 0; j < n; ++j) {
        int64_t begin = chunk_begin((kAlongKeys ? t : t + j) + shift, op.size), key = kAlongKeys ? s + j : s;
        top[j] = key >= begin && key < begin + op.size ? -1 : 0;
      }
    } else {
      int64_t bound = int_at(first, 0), right = op.kind == MaskKind::kWindow ? op.right : 0;
      for (int64_t j = 0; j < n; ++j) {
        int64_t query = kAlongKeys ? t : t + j, key = kAlongKeys ? s + j : s;
        int64_t distance = op.kind == MaskKind::kLengths ? key - bound + 1 : key - query - bound;
        top[j] = distance <= right && (op.kind != MaskKind::kWindow || distance > -op.size) ? -1 : 0;
      }
    }
    ++depth;
  }
  std::memcpy(allowed, stack[0], n * sizeof *allowed);
}

}  // namespace jaxattn::JAXATTN_ISA
