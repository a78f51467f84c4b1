// SPDX-License-Identifier: Apache-2.0
// Who is reading banks: whoever changes one may write over rows that no span names any more only
// after all calls that may have seen the old spans. The counting is that of Linux's sleepable
// read-copy-update: readers never wait.
#pragma once
#include <cstdint>

namespace clipproj {

// Counts its thread as a reader, and what its parallel loops do, for as long as it lives.
class BankReader {
 public:
  BankReader();
  ~BankReader();
  BankReader(const BankReader&) = delete;
  BankReader& operator=(const BankReader&) = delete;

 private:
  int phase_;
};

// Returns when every reader of the moment of the call is gone.
void wait_for_bank_readers();

// What was written before is seen by whoever sees what is written after.
void release_fence();

}  // namespace clipproj
