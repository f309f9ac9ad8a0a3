// Few queries against many keys, as in decoding: tasks share the keys, and the parts are joined in order ("Flash-Decoding
// for long-context inference", Dao et al. 2023). A task is one key block with all heads. It reads first the keys and then
// the values token by token, in the order in which they lie in memory, because reading them takes the most time.
#pragma once

#include "forward.h"

namespace jaxattn::JAXATTN_ISA {

inline int64_t decode_tasks(const Problem& p) { return p.B * p.splits; }

inline size_t decode_scratch(const Problem& p) {
  int64_t rows = forward_rows(p), padded = round_up(p.Dv, VL);
  int64_t sizes = floats_for<Range>(p.K) + floats_for<MaskView>(p.H);
  return p.K * rows * (p.D + kKeys) + rows * padded + round_up(p.D, VL) + padded + sizes + 7 * 16;
}

// A part of a row: its weighted values, its largest score, and the sum of its exponentials.
JAXATTN_INLINE int64_t part_size(const Problem& p) { return round_up(p.Dv, VL) + VL; }
JAXATTN_INLINE float* part_of(const Problem& p, int64_t split, int64_t example, int64_t head, int64_t t) {
  return p.partial + (((split * p.B + example) * p.H + head) * p.T + t) * part_size(p);
}

inline size_t decode_partial(const Problem& p) { return p.splits * p.B * p.H * p.T * part_size(p); }

struct DecodeTask {
  const Problem& p;
  BatchIndex b;
  int64_t example, split, rows;                // rows of each KV head
  Range block;                                 // of keys
  float *query = nullptr, *scores = nullptr;   // (K, rows, D) and (K, rows, kKeys)
  Range* keys = nullptr;                       // (K): those in the block that the rows of a head attend to
  MaskView* masks = nullptr;                   // (H)
  float *row_copy = nullptr, *sums = nullptr;  // of a key or a value; (rows, Dv padded)
};

inline DecodeTask take_decode_task(const Problem& p, Scratch& scratch, int64_t task) {
  int64_t split = task % p.splits, example = task / p.splits, rows = forward_rows(p), padded = round_up(p.Dv, VL);
  Range block = {split * kKeys, least((split + 1) * kKeys, p.S)};
  DecodeTask all = {p, batch_index(p, example), example, split, rows, block};
  all.query = scratch.take(p.K * rows * p.D), all.scores = scratch.take(p.K * rows * kKeys);
  all.keys = scratch.take_as<Range>(p.K), all.masks = scratch.take_as<MaskView>(p.H);
  all.row_copy = scratch.take(most(round_up(p.D, VL), padded)), all.sums = scratch.take(rows * padded);
  for (int64_t head = 0; head < p.H; ++head) all.masks[head] = mask_view(p, all.b, head);
  return all;
}

JAXATTN_INLINE ForwardHead decode_head(const DecodeTask& all, int64_t head) {
  int64_t G = all.p.H / all.p.K;
  return {all.p, all.b, all.example, head, G, round_up(all.p.Dv, VL), nullptr, {}, all.masks + head * G};
}

template <class Number>
inline QueryBlock decode_queries(const DecodeTask& all, int64_t head) {
  QueryBlock block;
  block.first = 0, block.rows = all.rows, block.sums = all.sums;
  block.query = all.query + head * all.rows * all.p.D, block.scores = all.scores + head * all.rows * kKeys;
  load_queries<Number>(decode_head(all, head), block);
  return block;
}

// Call `use(s, head, row)` for each key (or value) of the block and each KV head that attends to it.
template <class Number, class Use>
JAXATTN_INLINE void for_each_row(const DecodeTask& all, const Operand& array, int64_t width, Use use) {
  const Problem& p = all.p;
  const auto* first = elements<Number>(array, offset(array, all.b, p.batch_rank, 0));
  for (int64_t s = all.block.begin; s < all.block.end; ++s) {
    for (int64_t head = 0; head < p.K; ++head) {
      if (s < all.keys[head].begin || s >= all.keys[head].end) continue;
      const auto* row = first + s * array.row + head * array.head;
      use(s - all.block.begin, head, as_rows<Number>(row, 0, 1, width, all.row_copy).data);
    }
  }
}

JAXATTN_INLINE float* part_of(const DecodeTask& all, int64_t head, int64_t r) {
  int64_t G = all.p.H / all.p.K;
  return part_of(all.p, all.split, all.example, head * G + r % G, r / G);
}

template <class Number>
inline void find_decode_keys(DecodeTask& all) {
  for (int64_t head = 0; head < all.p.K; ++head) {
    QueryBlock block = decode_queries<Number>(all, head);
    bool none = tile_coverage(decode_head(all, head), block, all.block) == kNone;
    all.keys[head] = none ? Range{0, 0} : common(block.all_keys, all.block);
  }
}

// Scores as dot products: with few queries, transposing the keys would take longer than multiplying.
template <class Number>
inline void compute_few_scores(const DecodeTask& all) {
  int64_t rows = all.rows, D = all.p.D;
  for_each_row<Number>(all, all.p.key, D, [&](int64_t s, int64_t head, const float* key) {
    for (int64_t r = head * rows; r < (head + 1) * rows; ++r)
      all.scores[r * kKeys + s] = product_of_rows<Float32>(all.query + r * D, key, D);
  });
}

// Scores to weights; the parts begin with their sums.
template <class Number>
inline void compute_few_weights(const DecodeTask& all, int64_t head) {
  QueryBlock block = decode_queries<Number>(all, head);
  ForwardHead h = decode_head(all, head);
  bool any = all.keys[head].begin < all.keys[head].end;
  Coverage covered = any ? tile_coverage(h, block, all.block) : kNone;
  for (int64_t r = 0; r < all.rows; ++r) {
    if (any) update_softmax(h, block, r, all.block, covered);
    float* part = part_of(all, head, r);
    std::memset(part, 0, h.padded * sizeof(float));
    part[h.padded] = block.largest[r], part[h.padded + 1] = sum_of(block.total[r]);
  }
}

template <class Number>
inline void add_few_values(const DecodeTask& all) {
  int64_t padded = round_up(all.p.Dv, VL);
  for_each_row<Number>(all, all.p.value, all.p.Dv, [&](int64_t s, int64_t head, const float* value) {
    for (int64_t r = 0; r < all.rows; ++r) {
      float *sums = part_of(all, head, r), weight = all.scores[(head * all.rows + r) * kKeys + s];
      for (int64_t i = 0; i < padded; i += VL) store(sums + i, load(sums + i) + weight * load(value + i));
    }
  });
}

template <class Number>
inline void decode_task(const Problem& p, int64_t task, float* memory) {
  Scratch scratch = {memory};
  DecodeTask all = take_decode_task(p, scratch, task);
  find_decode_keys<Number>(all);
  compute_few_scores<Number>(all);
  for (int64_t head = 0; head < p.K; ++head) compute_few_weights<Number>(all, head);
  add_few_values<Number>(all);
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
