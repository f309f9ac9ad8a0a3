// The forward pass: query blocks against key blocks, with a softmax that is summed block by block (see ../blockwise.py).
//
// The G query heads of a KV head are computed together: row r of a block is query r / G of head r % G. A task is a share
// of the query blocks of one example and KV head. Its keys are packed, transposed, in panels; its values are read where
// they lie.
#pragma once

#include "masks.h"

namespace jaxattn::JAXATTN_ISA {

constexpr int64_t kPrefetched = 1 << 19;  // bytes of a head that are fetched ahead

// The rows of a query block, and the softmax so far.
struct QueryBlock {
  int64_t first, rows;
  float *query, *sums, *scores;             // (rows, D), (rows, Dv padded), (rows, kKeys)
  int64_t query_of[kRows], head_of[kRows];
  float largest[kRows];
  Floats total[kRows];  // in VL sums
  Range keys[kRows], group_keys[kRows / kGroup], all_keys;
};

// What all blocks of a task share.
struct ForwardHead {
  const Problem& p;
  BatchIndex b;
  int64_t example, kv_head, G, padded;  // Dv padded to whole vectors
  const float* key_panels;
  Rows value;
  MaskView* masks;  // one for each of the G heads
  // Where the next task's arrays begin, if they are small enough to wait in the cache.
  bool prefetch = false;
  int64_t next_query = 0, next_key = 0, next_value = 0;
};

JAXATTN_INLINE int64_t forward_rows(const Problem& p) { return p.T * (p.H / p.K); }

inline size_t forward_scratch(const Problem& p) {
  int64_t S = round_up(p.S, kPanel), padded = round_up(p.Dv, VL);
  return S * p.D + S * padded + kRows * (p.D + padded + kKeys) + floats_for<MaskView>(p.H / p.K) + 6 * 16;
}

inline int64_t forward_tasks(const Problem& p) { return p.B * p.K * p.splits; }

template <class Number>
inline void load_queries(const ForwardHead& h, QueryBlock& block) {
  const Problem& p = h.p;
  const auto* query = elements<Number>(p.query, offset(p.query, h.b, p.batch_rank, h.kv_head * h.G));
  int64_t t = block.first / h.G, g = block.first % h.G;
  for (int64_t r = 0; r < block.rows; ++r) {
    block.query_of[r] = t, block.head_of[r] = g;
    load_row<Number>(query + t * p.query.row + g * p.query.head, p.D, block.query + r * p.D);
    block.keys[r] = key_range(h.masks[g], t, p.S);
    block.largest[r] = kLowest, block.total[r] = Floats{};
    if (++g == h.G) g = 0, ++t;
  }
  std::memset(block.sums, 0, block.rows * h.padded * sizeof(float));
  block.all_keys = {p.S, 0};
  for (int64_t i = 0; i * kGroup < block.rows; ++i) {
    Range group = {p.S, 0};
    for (int64_t r = i * kGroup; r < least((i + 1) * kGroup, block.rows); ++r) {
      if (block.keys[r].begin >= block.keys[r].end) continue;
      group = {least(group.begin, block.keys[r].begin), most(group.end, block.keys[r].end)};
    }
    block.group_keys[i] = group;
    block.all_keys = {least(block.all_keys.begin, group.begin), most(block.all_keys.end, group.end)};
  }
}

// How much of a tile the masks of all its heads leave.
inline Coverage tile_coverage(const ForwardHead& h, const QueryBlock& block, Range keys) {
  if (h.p.mask_is_range) return kAll;
  Range queries = {block.first / h.G, (block.first + block.rows - 1) / h.G + 1};
  Coverage joined = coverage(h.masks[0], queries, keys);
  for (int64_t g = 1; g < h.G; ++g)
    if (coverage(h.masks[g], queries, keys) != joined) return kSome;
  return joined;
}

// Compute the vectors of a tile's scores that hold any key of the rows' group.
inline void compute_scores(const ForwardHead& h, QueryBlock& block, Range tile) {
  int64_t D = h.p.D;
  for (int64_t s = tile.begin; s < tile.end; s += kPanel) {
    for (int64_t i = 0; i * kGroup < block.rows; ++i) {
      Range keys = common(block.group_keys[i], {s, s + kPanel});
      if (keys.begin >= keys.end) continue;
      int64_t first = (keys.begin - s) / VL, vectors = ceil_div(keys.end - s, VL) - first;
      int64_t r = i * kGroup, rows = least(kGroup, block.rows - r);
      multiply_vectors<false>(int(vectors), rows, D, block.query + r * D, D, 1, h.key_panels + s * D + first * VL, kPanel,
                              block.scores + r * kKeys + s - tile.begin + first * VL, kKeys);
    }
  }
}

// Set lanes of a row outside [begin, end) to -inf, in the vectors that hold its ends.
JAXATTN_INLINE void mask_ends(float* row, int64_t begin, int64_t end) {
  int64_t first = begin / VL * VL, last = (end - 1) / VL * VL;
  const Floats masked = splat(-__builtin_inff());
  if (first < begin) store(row + first, lanes() < int32_t(begin - first) ? masked : load(row + first));
  if (last + VL > end) store(row + last, lanes() < int32_t(end - last) ? load(row + last) : masked);
}

// Turn n products of a row into logits, with cap and bias.
inline void cap_and_bias(const ForwardHead& h, int64_t t, int64_t g, int64_t s, int64_t n, float* row) {
  const Problem& p = h.p;
  if (p.soft_cap > 0) {
    cap_row(p, n, row, nullptr);
    if (!p.bias.data) return;
  }
  const float scale = p.soft_cap > 0 ? 1.0f : p.score_scale;
  const float* bias = elements<Float32>(p.bias, offset(p.bias, h.b, p.batch_rank, h.kv_head * h.G + g));
  bias += t * p.bias.row + s * p.bias.column;
  if (p.bias.column == 0)
    for (int64_t i = 0; i < n; ++i) row[i] = row[i] * scale + *bias;
  else
    for (int64_t i = 0; i < n; ++i) row[i] = row[i] * scale + bias[i];
}

inline void mask_row(const MaskView& mask, int64_t t, int64_t s, int64_t n, float* row) {
  int32_t allowed[kRun];
  test_entries<true>(mask, t, s, n, allowed);
  for (int64_t i = 0; i < n; ++i) row[i] = allowed[i] ? row[i] : -__builtin_inff();
}

inline void drop_row(const ForwardHead& h, int64_t t, int64_t g, int64_t s, int64_t n, float* row) {
  const Problem& p = h.p;
  int64_t row_at = offset(p.row_bits, h.b, p.batch_rank, h.kv_head * h.G + g) + t * p.row_bits.row;
  uint32_t row_bits = reinterpret_cast<const uint32_t*>(p.row_bits.data)[row_at];
  const int32_t* columns = reinterpret_cast<const int32_t*>(p.column_bits.data);
  columns += offset(p.column_bits, h.b, p.batch_rank, h.kv_head * h.G + g) + s;
  int64_t readable = p.S - s;
  for (int64_t i = 0; i < n; i += VL) {
    Ints bits = {};
    if (i + VL <= readable)
      bits = load_ints(columns + i);
    else
      for (int64_t j = i; j < readable; ++j) bits[j - i] = columns[j];
    Ints kept = is_kept((Bits)bits ^ row_bits, p.drop_below);
    store(row + i, kept ? load(row + i) * p.keep_factor : Floats{});
  }
}

// Turn a row's scores into weights relative to its largest score so far.
inline void update_softmax(const ForwardHead& h, QueryBlock& block, int64_t r, Range tile, Coverage covered) {
  float* row = block.scores + r * kKeys;
  int64_t t = block.query_of[r], g = block.head_of[r];
  Range group = block.group_keys[r / kGroup];
  Range keys = common(block.keys[r], tile);
  keys = {keys.begin - tile.begin, keys.end - tile.begin};
  // The vectors that hold the row's keys, and those that hold its group's.
  int64_t begin = keys.begin / VL * VL, end = round_up(keys.end, VL);
  int64_t group_begin = (most(group.begin, tile.begin) - tile.begin) / VL * VL;
  int64_t group_end = round_up(least(group.end, tile.end) - tile.begin, VL);
  if (keys.begin >= keys.end) begin = end = group_begin;
  for (int64_t i = group_begin; i < begin; i += VL) store(row + i, Floats{});
  for (int64_t i = end; i < group_end; i += VL) store(row + i, Floats{});
  if (begin == end) return;
  if (has_logits(h.p)) cap_and_bias(h, t, g, tile.begin + keys.begin, keys.end - keys.begin, row + keys.begin);
  if (covered == kSome) mask_row(h.masks[g], t, tile.begin + keys.begin, keys.end - keys.begin, row + keys.begin);
  mask_ends(row, keys.begin, keys.end);

  Floats highest = load(row + begin);
  for (int64_t i = begin + VL; i < end; i += VL) highest = larger(highest, load(row + i));
  float largest = largest_of(highest);
  if (largest > block.largest[r]) {
    float shrink = exp2(splat((block.largest[r] - largest) * h.p.rate))[0];
    block.largest[r] = largest;
    block.total[r] *= shrink;
    float* sums = block.sums + r * h.padded;
    for (int64_t i = 0; i < h.padded; i += VL) store(sums + i, load(sums + i) * shrink);
  }
  Floats shift = splat(block.largest[r]), rate = splat(h.p.rate), total = {};
  for (int64_t i = begin; i < end; i += VL) {
    Floats weights = exp2((load(row + i) - shift) * rate);
    total += weights;
    store(row + i, weights);
  }
  block.total[r] += total;
  if (h.p.drop_below) drop_row(h, t, g, tile.begin + begin, end - begin, row + begin);
}

// Add a tile's weighted values; `value` begins at the tile's first key.
inline void add_values(const ForwardHead& h, QueryBlock& block, Range tile, Rows value) {
  for (int64_t i = 0; i * kGroup < block.rows; ++i) {
    Range keys = common(block.group_keys[i], tile);
    if (keys.begin >= keys.end) continue;
    int64_t r = i * kGroup, rows = least(kGroup, block.rows - r), skipped = keys.begin - tile.begin;
    multiply_add(rows, keys.end - keys.begin, h.padded, block.scores + r * kKeys + skipped, kKeys, 1,
                 value.data + skipped * value.stride, value.stride, block.sums + r * h.padded, h.padded);
  }
}

// The logsumexp of a row, in two parts; 0 and inf where all keys are masked.
JAXATTN_INLINE void store_sums(const Problem& p, int64_t row, float largest, float total) {
  p.largest[row] = total == 0 ? 0 : largest;
  p.log_total[row] = total == 0 ? __builtin_inff() : __builtin_log2f(total);
}

template <class Number>
inline void store_results(const ForwardHead& h, const QueryBlock& block) {
  const Problem& p = h.p;
  auto* context = reinterpret_cast<typename Number::Stored*>(p.context);
  for (int64_t r = 0; r < block.rows; ++r) {
    int64_t t = block.query_of[r], head = h.kv_head * h.G + block.head_of[r];
    float total = sum_of(block.total[r]);
    bool empty = total == 0;
    store_row<Number>(block.sums + r * h.padded, p.Dv, empty ? 0.0f : 1 / total,
                      context + ((h.example * p.T + t) * p.H + head) * p.Dv);
    store_sums(p, (h.example * p.H + head) * p.T + t, block.largest[r], total);
  }
}

inline void find_next_head(ForwardHead& h) {
  const Problem& p = h.p;
  bool last = h.kv_head + 1 == p.K;
  h.prefetch = (p.T * h.G + p.S) * (p.D + p.Dv) * 4 <= kPrefetched && !(last && h.example + 1 == p.B);
  BatchIndex b = last ? batch_index(p, h.example + 1) : h.b;
  int64_t head = last ? 0 : h.kv_head + 1;
  h.next_query = offset(p.query, b, p.batch_rank, head * h.G);
  h.next_key = offset(p.key, b, p.batch_rank, head), h.next_value = offset(p.value, b, p.batch_rank, head);
}

JAXATTN_INLINE void prefetch_next_head(const ForwardHead& h, const QueryBlock& block, int64_t r) {
  const Problem& p = h.p;
  int64_t t = block.query_of[r], g = block.head_of[r];
  prefetch_row(p.query, h.next_query + g * p.query.head, t, p.D, p.type);
  if (g > 0 || t >= p.S) return;
  prefetch_row(p.key, h.next_key, t, p.D, p.type);
  prefetch_row(p.value, h.next_value, t, p.Dv, p.type);
}

// Fetch a row of the next query block.
JAXATTN_INLINE void prefetch_query(const ForwardHead& h, int64_t row) {
  const Problem& p = h.p;
  int64_t head = h.kv_head * h.G + row % h.G;
  prefetch_row(p.query, offset(p.query, h.b, p.batch_rank, head), row / h.G, p.D, p.type);
}

template <class Number>
inline void attend_block(const ForwardHead& h, QueryBlock& block, Range next_rows) {
  load_queries<Number>(h, block);
  // Key blocks lie on one grid for all rows, so a row's sums do not depend on the other rows.
  for (int64_t s = block.all_keys.begin / kKeys * kKeys; s < block.all_keys.end; s += kKeys) {
    Range tile = {s, least(s + kKeys, h.p.S)};
    Coverage covered = tile_coverage(h, block, tile);
    if (covered == kNone) continue;
    compute_scores(h, block, tile);
    bool first = s < block.all_keys.begin + kKeys;
    for (int64_t r = 0; r < block.rows; ++r) {
      if (overlap(block.group_keys[r / kGroup], tile)) update_softmax(h, block, r, tile, covered);
      if (first && h.prefetch) prefetch_next_head(h, block, r);
      if (first && next_rows.begin + r < next_rows.end) prefetch_query(h, next_rows.begin + r);
    }
    add_values(h, block, tile, {h.value.data + s * h.value.stride, h.value.stride});
  }
  store_results<Number>(h, block);
}

// The query blocks of a task: rows begin, begin + step, ..., of up to `size` rows each.
struct RowBlocks {
  int64_t begin, end, step, size;
};

inline RowBlocks row_blocks(const Problem& p, const MaskView& mask, int64_t split) {
  int64_t rows = forward_rows(p), blocks = ceil_div(rows, kRows), size = round_up(ceil_div(rows, blocks), kGroup);
  // Later query blocks may have more keys, so the tasks of a head take turns.
  if (!has_window(mask)) return {split * size, rows, p.splits * size, size};
  // With a window all have as many: neighbouring blocks share their keys.
  int64_t share = ceil_div(ceil_div(rows, size), p.splits) * size;
  return {split * share, least((split + 1) * share, rows), size, size};
}

// A range that holds all keys of a task.
inline Range keys_of(const Problem& p, const MaskView* masks, const RowBlocks& blocks) {
  int64_t G = p.H / p.K;
  if (!p.mask_is_range || blocks.begin >= blocks.end) return {0, p.S};
  Range keys = {p.S, 0};
  for (int64_t g = 0; g < G; ++g) {
    keys.begin = least(keys.begin, key_range(masks[g], blocks.begin / G, p.S).begin);
    keys.end = most(keys.end, key_range(masks[g], (blocks.end - 1) / G, p.S).end);
  }
  return {most(keys.begin, 0), least(keys.end, p.S)};
}

template <class Number>
inline void forward_task(const Problem& p, int64_t task, float* memory) {
  Scratch scratch = {memory};
  int64_t split = task % p.splits, head = task / p.splits % p.K, example = task / p.splits / p.K;
  int64_t G = p.H / p.K, padded = round_up(p.Dv, VL), S = round_up(p.S, kPanel);
  BatchIndex b = batch_index(p, example);

  auto* masks = scratch.take_as<MaskView>(G);
  for (int64_t g = 0; g < G; ++g) masks[g] = mask_view(p, b, head * G + g);
  RowBlocks blocks = row_blocks(p, masks[0], split);
  Range keys = keys_of(p, masks, blocks);
  float* panels = scratch.take(S * p.D);
  const auto* key = elements<Number>(p.key, offset(p.key, b, p.batch_rank, head));
  for (int64_t s = keys.begin / kPanel * kPanel; s < keys.end; s += kPanel)
    pack_panel<Number>(key + s * p.key.row, p.key.row, least(kPanel, p.S - s), p.D, panels + s * p.D);
  const auto* value = elements<Number>(p.value, offset(p.value, b, p.batch_rank, head));
  Rows rows = as_rows<Number>(value, p.value.row, keys.end, p.Dv, scratch.take(S * padded));

  ForwardHead h = {p, b, example, head, G, padded, panels, rows, masks};
  find_next_head(h);
  QueryBlock block;
  block.query = scratch.take(kRows * p.D), block.sums = scratch.take(kRows * padded);
  block.scores = scratch.take(kRows * kKeys);
  for (int64_t first = blocks.begin; first < blocks.end; first += blocks.step) {
    block.first = first, block.rows = least(blocks.size, blocks.end - first);
    attend_block<Number>(h, block, {first + blocks.step, blocks.end});
  }
}

}  // namespace jaxattn::JAXATTN_ISA
