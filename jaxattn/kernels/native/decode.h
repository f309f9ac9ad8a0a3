// Few queries against many keys, as in decoding: tasks share the keys, and the parts are joined in order ("Flash-Decoding
// for long-context inference", Dao et al. 2023). A task is one key block with all heads, so memory is read in order.
#pragma once

#include "forward.h"

namespace jaxattn::JAXATTN_ISA {

inline int64_t decode_tasks(const Problem& p) { return p.B * p.splits; }

inline size_t decode_scratch(const Problem& p) {
  int64_t padded = round_up(p.Dv, VL);
  int64_t views = floats_for<MaskView>(p.H / p.K);
  return kKeys * (round_up(p.D, VL) + padded) + kRows * (p.D + padded + kKeys) + views + 6 * 16;
}

// A part of a row: its weighted values, its largest score, and the sum of its exponentials.
JAXATTN_INLINE int64_t part_size(const Problem& p) { return round_up(p.Dv, VL) + VL; }
JAXATTN_INLINE float* part_of(const Problem& p, int64_t split, int64_t example, int64_t head, int64_t t) {
  return p.partial + (((split * p.B + example) * p.H + head) * p.T + t) * part_size(p);
}

inline size_t decode_partial(const Problem& p) { return p.splits * p.B * p.H * p.T * part_size(p); }

// Scores as dot products: with few queries, transposing the keys would take longer than multiplying.
inline void compute_few_scores(const QueryBlock& block, Rows key, int64_t D, Range keys) {
  for (int64_t s = 0; s < keys.end - keys.begin; ++s)
    for (int64_t r = 0; r < block.rows; ++r)
      block.scores[r * kKeys + s] = product_of_rows<Float32>(block.query + r * D, key.data + s * key.stride, D);
}

template <class Number>
inline void decode_head(const ForwardHead& h, QueryBlock& block, Range keys, float* key_copy, float* value_copy) {
  const Problem& p = h.p;
  load_queries<Number>(h, block);
  if (!overlap(block.all_keys, keys)) return;
  Coverage covered = tile_coverage(h, block, keys);
  if (covered == kNone) return;
  const auto* key = elements<Number>(p.key, offset(p.key, h.b, p.batch_rank, h.kv_head)) + keys.begin * p.key.row;
  const auto* value = elements<Number>(p.value, offset(p.value, h.b, p.batch_rank, h.kv_head));
  int64_t n = keys.end - keys.begin;
  compute_few_scores(block, as_rows<Number>(key, p.key.row, n, p.D, key_copy), p.D, keys);
  for (int64_t r = 0; r < block.rows; ++r) update_softmax(h, block, r, keys, covered);
  Rows rows = as_rows<Number>(value + keys.begin * p.value.row, p.value.row, n, p.Dv, value_copy);
  add_values(h, block, keys, rows);
}

template <class Number>
inline void decode_task(const Problem& p, int64_t task, float* memory) {
  Scratch scratch = {memory};
  int64_t example = task / p.splits, split = task % p.splits, G = p.H / p.K, padded = round_up(p.Dv, VL);
  Range keys = {split * kKeys, least((split + 1) * kKeys, p.S)};
  auto* masks = scratch.take_as<MaskView>(G);
  float *key_copy = scratch.take(kKeys * round_up(p.D, VL)), *value_copy = scratch.take(kKeys * padded);
  QueryBlock block;
  block.first = 0, block.rows = forward_rows(p);
  block.query = scratch.take(kRows * p.D), block.sums = scratch.take(kRows * padded);
  block.scores = scratch.take(kRows * kKeys);
  BatchIndex b = batch_index(p, example);
  for (int64_t head = 0; head < p.K; ++head) {
    for (int64_t g = 0; g < G; ++g) masks[g] = mask_view(p, b, head * G + g);
    ForwardHead h = {p, b, example, head, G, padded, nullptr, {}, masks};
    decode_head<Number>(h, block, keys, key_copy, value_copy);
    for (int64_t r = 0; r < block.rows; ++r) {
      float* part = part_of(p, split, example, head * G + r % G, r / G);
      std::memcpy(part, block.sums + r * padded, padded * sizeof(float));
      part[padded] = block.largest[r], part[padded + 1] = sum_of(block.total[r]);
    }
  }
}

template <class Number>
inline void decode_join_task(const Problem& p, int64_t task, float*) {
  int64_t example = task / p.H, head = task % p.H, padded = round_up(p.Dv, VL);
  auto* context = reinterpret_cast<typename Number::Stored*>(p.context);
  for (int64_t t = 0; t < p.T; ++t) {
    float* sums = part_of(p, 0, example, head, t);
    float largest = sums[padded], total = sums[padded + 1];
    for (int64_t split = 1; split < p.splits; ++split) {
      const float* part = part_of(p, split, example, head, t);
      float highest = part[padded] > largest ? part[padded] : largest;
      float old_share = exp2(splat((largest - highest) * p.rate))[0];
      float new_share = exp2(splat((part[padded] - highest) * p.rate))[0];
      for (int64_t i = 0; i < padded; ++i) sums[i] = sums[i] * old_share + part[i] * new_share;
      total = total * old_share + part[padded + 1] * new_share;
      largest = highest;
    }
    bool empty = total == 0;
    store_row<Number>(sums, p.Dv, empty ? 0.0f : 1 / total, context + ((example * p.T + t) * p.H + head) * p.Dv);
    store_sums(p, (example * p.H + head) * p.T + t, largest, total);
  }
}

}  // namespace jaxattn::JAXATTN_ISA
