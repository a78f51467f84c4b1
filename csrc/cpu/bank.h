// SPDX-License-Identifier: Apache-2.0
// Rows of many projectors: which belong together, and what share of them a thread gets.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../check.h"
#include "../params.h"

namespace clipproj {

// What a row of so many directions costs, in passes over its d elements: both ways once.
inline int64_t row_work(int64_t rank) { return rank + 2; }

// The projector of a row. It has been checked when the call began, but whoever owns the bank may
// switch spans meanwhile, and take one away.
template <class A>
Span span_of(const ProjectParams<A>& p, int64_t row) {
  const int64_t j = p.index[row];
  const Span span = j < 0 ? Span{0, 0} : load_span(p.spans, j);
  check_span("bank", span, j, p.k, p.gram ? p.gram_row : 0);
  return span;
}

// The rank of that projector, of the moment: good enough to share out work by.
template <class A>
int64_t rank_of(const ProjectParams<A>& p, int64_t row) {
  const int64_t j = p.index[row];
  return j < 0 ? 0 : std::abs(int64_t{load_span(p.spans, j).rank});
}

// Whether rows of this rank keep their bits.
template <class A>
bool is_copy(const ProjectParams<A>& p, int64_t rank) {
  return rank == 0 && !p.normalize && !p.norm && !p.scale;
}

// Where to cut [0, n) into shares of about equal work(i): share s is [cuts[s], cuts[s + 1]).
template <class F>
std::vector<int64_t> equal_shares(int64_t shares, int64_t n, int64_t total, F work) {
  std::vector<int64_t> cuts(shares + 1, n);
  int64_t done = 0, share = 0;
  for (int64_t i = 0; i < n; ++i) {
    while (share < shares && done * shares >= share * total) cuts[share++] = i;
    done += work(i);
  }
  return cuts;
}

// The numbers of rows in an order that puts those of one projector together, ascending, and its
// span as it was when they were grouped. Its memory is that of the most rows it was made for,
// whatever the number of projectors.
class RowOrder {
 public:
  explicit RowOrder(int64_t most) : order_(most), spans_(most), ends_(buckets(most) + 1) {}

  const int64_t* rows() const { return order_.data(); }
  const Span* spans() const { return spans_.data(); }

  template <class A>
  void group(const ProjectParams<A>& p, int64_t begin, int64_t end) {
    sort(p.index, begin, end, p.m);
    for (int64_t i = 0; i < end - begin; ++i) {
      const bool first = i == 0 || p.index[order_[i]] != p.index[order_[i - 1]];
      spans_[i] = first ? span_of(p, order_[i]) : spans_[i - 1];
    }
  }

 private:
  // Rows [begin, end) by their index in -1..m-1: a counting sort of what is left of the index in a
  // bucket's number, then buckets that several projectors share by comparison.
  void sort(const int32_t* index, int64_t begin, int64_t end, int64_t m) {
    const int64_t count = std::min<int64_t>(buckets(end - begin), ends_.size() - 1);
    const auto mask = static_cast<uint32_t>(count - 1);
    auto bucket = [&](int64_t row) { return static_cast<uint32_t>(index[row] + 1) & mask; };
    std::fill(ends_.begin(), ends_.end(), 0);
    for (int64_t i = begin; i < end; ++i) ++ends_[bucket(i) + 1];
    for (int64_t b = 1; b <= count; ++b) ends_[b] += ends_[b - 1];
    // ends_[b] is where bucket b begins, and in the end where it ends.
    for (int64_t i = begin; i < end; ++i) order_[ends_[bucket(i)]++] = i;
    if (m < count) return;
    for (int64_t b = 0, first = 0; b < count; first = ends_[b++]) {
      std::sort(order_.begin() + first, order_.begin() + ends_[b], [&](int64_t i, int64_t j) {
        return index[i] != index[j] ? index[i] < index[j] : i < j;
      });
    }
  }

  // A power of two, and so many that rows of different projectors seldom meet.
  static int64_t buckets(int64_t rows) {
    int64_t count = 1;
    while (count < 2 * rows) count *= 2;
    return count;
  }

  std::vector<int64_t> order_;
  std::vector<Span> spans_;
  std::vector<int32_t> ends_;
};

}  // namespace clipproj
