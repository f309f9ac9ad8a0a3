// Which keys a query may attend to: the range that bounds them, whole tiles at once, or entry by entry.
#pragma once

#include "simd.h"

namespace jaxattn::JAXATTN_ISA {

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
  MaskView view = {p.mask, p.mask_ops, {}, {}, p.mask_is_range, {0, p.S}, {-kFar, kFar}};
  for (int i = 0; i < p.mask_ops; ++i) {
    const MaskOp& op = p.mask[i];
    int64_t size = op.kind == MaskKind::kArray ? 1 : 4;
    if (op.first.data) view.first[i] = op.first.data + size * offset(op.first, b, p.batch_rank, head);
    if (op.second.data) view.second[i] = op.second.data + size * offset(op.second, b, p.batch_rank, head);
    if (!p.mask_is_range || op.kind == MaskKind::kAnd) continue;
    int64_t position = int_at(view.first[i], 0);
    if (op.kind == MaskKind::kLengths) view.all.end = least(view.all.end, most(position, 0));
    if (op.kind != MaskKind::kLengths) view.shifted.end = least(view.shifted.end, position + 1);
    if (op.kind == MaskKind::kWindow) view.shifted.begin = most(view.shifted.begin, position + 1 - op.size);
  }
  return view;
}

JAXATTN_INLINE bool has_window(const MaskView& mask) { return mask.is_range && mask.shifted.begin > -kFar; }

// A range outside which the query may attend to no key, of a mask that is more than a range.
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
    if (op.kind == MaskKind::kWindow) range.begin = range.end - op.size;
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
      bool none = s.begin > t.end - 1 + shift || s.end - 1 <= t.begin + shift - size;
      bool all = s.end - 1 <= t.begin + shift && s.begin > t.end - 1 + shift - size;
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
    } else {
      int64_t bound = int_at(first, 0);
      for (int64_t j = 0; j < n; ++j) {
        int64_t query = kAlongKeys ? t : t + j, key = kAlongKeys ? s + j : s;
        int64_t distance = op.kind == MaskKind::kLengths ? key - bound + 1 : key - query - bound;
        top[j] = distance <= 0 && (op.kind != MaskKind::kWindow || distance > -op.size) ? -1 : 0;
      }
    }
    ++depth;
  }
  std::memcpy(allowed, stack[0], n * sizeof *allowed);
}

}  // namespace jaxattn::JAXATTN_ISA
