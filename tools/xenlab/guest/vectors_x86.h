/*
 * The vector registers of x86: a pattern is held in them during a sleep, as any program may.
 *
 * sleep_with_vectors() returns what it looked at when that came back as something else, NULL when all is well.
 */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

enum { VECTOR_WORDS = 32 };

/* Hold `pattern` in all sixteen xmm registers while sleeping, and return them in `after`. */
static void sleep_with_xmm(const uint64_t pattern[32], uint64_t after[32], const struct timespec *pause)
{
    long result = 35; /* __NR_nanosleep */

    asm volatile(
        "movdqu 0(%[in]), %%xmm0; movdqu 16(%[in]), %%xmm1; movdqu 32(%[in]), %%xmm2; movdqu 48(%[in]), %%xmm3;"
        "movdqu 64(%[in]), %%xmm4; movdqu 80(%[in]), %%xmm5; movdqu 96(%[in]), %%xmm6; movdqu 112(%[in]), %%xmm7;"
        "movdqu 128(%[in]), %%xmm8; movdqu 144(%[in]), %%xmm9; movdqu 160(%[in]), %%xmm10;"
        "movdqu 176(%[in]), %%xmm11; movdqu 192(%[in]), %%xmm12; movdqu 208(%[in]), %%xmm13;"
        "movdqu 224(%[in]), %%xmm14; movdqu 240(%[in]), %%xmm15;"
        "syscall;"
        "movdqu %%xmm0, 0(%[out]); movdqu %%xmm1, 16(%[out]); movdqu %%xmm2, 32(%[out]);"
        "movdqu %%xmm3, 48(%[out]); movdqu %%xmm4, 64(%[out]); movdqu %%xmm5, 80(%[out]);"
        "movdqu %%xmm6, 96(%[out]); movdqu %%xmm7, 112(%[out]); movdqu %%xmm8, 128(%[out]);"
        "movdqu %%xmm9, 144(%[out]); movdqu %%xmm10, 160(%[out]); movdqu %%xmm11, 176(%[out]);"
        "movdqu %%xmm12, 192(%[out]); movdqu %%xmm13, 208(%[out]); movdqu %%xmm14, 224(%[out]);"
        "movdqu %%xmm15, 240(%[out]);"
        : "+a"(result)
        : [in] "r"(pattern), [out] "r"(after), "D"(pause), "S"(NULL)
        : "rcx", "r11", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
          "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

/* The high halves of the first four ymm registers, which only XSAVE knows. */
__attribute__((target("avx")))
static void sleep_with_ymm(const uint64_t pattern[16], uint64_t after[16], const struct timespec *pause)
{
    long result = 35; /* __NR_nanosleep */

    asm volatile(
        "vmovdqu 0(%[in]), %%ymm0; vmovdqu 32(%[in]), %%ymm1; vmovdqu 64(%[in]), %%ymm2;"
        "vmovdqu 96(%[in]), %%ymm3;"
        "syscall;"
        "vmovdqu %%ymm0, 0(%[out]); vmovdqu %%ymm1, 32(%[out]); vmovdqu %%ymm2, 64(%[out]);"
        "vmovdqu %%ymm3, 96(%[out]); vzeroupper;"
        : "+a"(result)
        : [in] "r"(pattern), [out] "r"(after), "D"(pause), "S"(NULL)
        : "rcx", "r11", "memory", "xmm0", "xmm1", "xmm2", "xmm3");
}

static const char *sleep_with_vectors(const uint64_t pattern[VECTOR_WORDS], const struct timespec *pause, bool wide)
{
    uint64_t after[VECTOR_WORDS] = { 0 };

    if (wide && __builtin_cpu_supports("avx")) {
        sleep_with_ymm(pattern, after, pause);
        return memcmp(pattern, after, 16 * 8) ? "ymm" : NULL;
    }
    sleep_with_xmm(pattern, after, pause);
    return memcmp(pattern, after, sizeof(after)) ? "xmm" : NULL;
}
