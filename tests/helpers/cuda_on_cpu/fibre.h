// SPDX-License-Identifier: Apache-2.0
// A second, third, ... flow of control on one thread, and the switch between them. The sanitizers
// are told: AddressSanitizer which stack is in use, ThreadSanitizer that fibres are threads.
#pragma once
#include <cstddef>
#include <memory>

namespace cuda_on_cpu {

class Fibre {
 public:
  Fibre();  // the flow that calls it: the one to switch from first
  explicit Fibre(size_t stack_bytes);
  ~Fibre();
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;

  // From now on a switch to this fibre calls `entry`, which must switch away and never return.
  // What an earlier entry had on the stack is forgotten, not destroyed.
  void restart(void (*entry)());

  // Goes on in `to` until somebody switches back here; nobody may after the last time.
  void switch_to(Fibre& to, bool last = false);

 private:
  friend void enter_fibre();
  void arrived();

  std::unique_ptr<char[]> memory_;
  const void* stack_ = nullptr;
  size_t size_ = 0;
  void* top_ = nullptr;         // the stack pointer while another fibre runs
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  void* tsan_ = nullptr;        // ThreadSanitizer's
  void (*entry_)() = nullptr;
};

}  // namespace cuda_on_cpu
