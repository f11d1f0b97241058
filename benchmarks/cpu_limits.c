// cpu_limits.c — what a core can do at most: bytes read, and products of bytes. Compiled by cpu_limits.py when it runs,
// with -march=native.
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#if defined(__AVX512VNNI__)
typedef __m512i Vector;
#define DOT(sums, a, b) _mm512_dpbusd_epi32(sums, a, b)
#elif defined(__AVXVNNI__)
typedef __m256i Vector;
#define DOT(sums, a, b) _mm256_dpbusd_avx_epi32(sums, a, b)
#elif defined(__AVX2__)  // three instructions in the place of one
typedef __m256i Vector;
#define DOT(sums, a, b) _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)))
#elif defined(__ARM_FEATURE_DOTPROD)
typedef int32x4_t Vector;
#define DOT(sums, a, b) vdotq_s32(sums, (int8x16_t)a, (int8x16_t)b)
#else
#error "no int8 dot product"
#endif

#if defined(__x86_64__)
#define KEEP(value) __asm__ volatile("" : "+v"(value))
#else
#define KEEP(value) __asm__ volatile("" : "+w"(value))
#endif

// Sums apart from each other: at least an instruction's latency times how many start at once, and no more than
// registers.
#define EACH_SUM(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define START(i) Vector sum##i = a;
#define ADD(i)                \
  sum##i = DOT(sum##i, a, b); \
  KEEP(sum##i);
#define COUNT(i) +1

// Returns how many multiply-adds of bytes were done, all of them in registers.
int64_t dot_products(int64_t rounds) {
  Vector a = {0}, b = {0};
  KEEP(a);
  KEEP(b);
  EACH_SUM(START)
  for (int64_t i = 0; i < rounds; ++i) {
    EACH_SUM(ADD)
  }
  return rounds * (0 EACH_SUM(COUNT)) * (int64_t)sizeof(Vector);
}

// Reads all of it, front to back; the result depends on every byte.
int64_t read_bytes(const int64_t* data, int64_t size) {
  typedef int64_t Line __attribute__((vector_size(64), aligned(8), may_alias));
  Line sum0 = {0}, sum1 = {0}, sum2 = {0}, sum3 = {0};
  for (int64_t i = 0; i + 32 <= size / 8; i += 32) {
    const Line* lines = (const Line*)(data + i);
    for (int j = 0; j < 4; ++j) __builtin_prefetch(lines + j + 128);
    sum0 ^= lines[0];
    sum1 ^= lines[1];
    sum2 ^= lines[2];
    sum3 ^= lines[3];
  }
  sum0 ^= sum1 ^ sum2 ^ sum3;
  int64_t all = 0;
  for (int j = 0; j < 8; ++j) all ^= sum0[j];
  return all;
}
