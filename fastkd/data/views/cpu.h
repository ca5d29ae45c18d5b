// What this processor has. Code for it is compiled beside plain code, which -DFASTKD_PLAIN leaves alone in the library.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(FASTKD_PLAIN)
#include <immintrin.h>
#define FASTKD_AVX2 __attribute__((target("avx2,bmi,bmi2")))

namespace fastkd {

inline const bool has_avx2 =
    (__builtin_cpu_init(), __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2"));

} // namespace fastkd
#endif
