// SPDX-License-Identifier: Apache-2.0
// When the solution of a one-sided row is good enough: the same on every device (cpu/solve.inl says
// how it is found). All moves are measured by the row's largest excess.
#pragma once

namespace clipproj {

// A round lowers and raises coefficients until none moves by more than `kMove`, in at most kSweeps
// sweeps, and then only raises them until none rises by more than `kLeft`, in at most kRaises. What
// excess is left then is at most q kLeft, q the largest sum of the negative elements in a row of
// gram. A round that does not get there is followed by another with a sixteenth of `kMove`; a row
// that kRounds do not solve becomes NaN.
template <class A>
struct SolveLimits {
  static constexpr int kRounds = 4, kSweeps = 512, kRaises = 64;
  static constexpr A kMove = A(1) / (1 << 10), kLeft = A(1) / (1 << 16);
};
template <>
struct SolveLimits<double> {
  static constexpr int kRounds = 2, kSweeps = 1 << 14, kRaises = 64;
  static constexpr double kMove = 1e-14, kLeft = 1e-14;
};

}  // namespace clipproj
