/*
 * The vector registers of arm64: a pattern is held in them during a sleep, as any program may.
 *
 * sleep_with_vectors() returns what it looked at when that came back as something else, NULL when all is well.
 */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

enum { VECTOR_WORDS = 64 };

/* Hold `pattern` in q0 to q31 while sleeping, and return them in `after`. */
static void sleep_with_all(const uint64_t pattern[VECTOR_WORDS], uint64_t after[VECTOR_WORDS],
                           const struct timespec *pause)
{
    register long number asm("x8") = 101; /* __NR_nanosleep */
    register const void *first asm("x0") = pause;
    register const void *second asm("x1") = NULL;

    asm volatile(
        "ldp q0, q1, [%[in], 0]; ldp q2, q3, [%[in], 32];"
        "ldp q4, q5, [%[in], 64]; ldp q6, q7, [%[in], 96];"
        "ldp q8, q9, [%[in], 128]; ldp q10, q11, [%[in], 160];"
        "ldp q12, q13, [%[in], 192]; ldp q14, q15, [%[in], 224];"
        "ldp q16, q17, [%[in], 256]; ldp q18, q19, [%[in], 288];"
        "ldp q20, q21, [%[in], 320]; ldp q22, q23, [%[in], 352];"
        "ldp q24, q25, [%[in], 384]; ldp q26, q27, [%[in], 416];"
        "ldp q28, q29, [%[in], 448]; ldp q30, q31, [%[in], 480];"
        "svc 0;"
        "stp q0, q1, [%[out], 0]; stp q2, q3, [%[out], 32];"
        "stp q4, q5, [%[out], 64]; stp q6, q7, [%[out], 96];"
        "stp q8, q9, [%[out], 128]; stp q10, q11, [%[out], 160];"
        "stp q12, q13, [%[out], 192]; stp q14, q15, [%[out], 224];"
        "stp q16, q17, [%[out], 256]; stp q18, q19, [%[out], 288];"
        "stp q20, q21, [%[out], 320]; stp q22, q23, [%[out], 352];"
        "stp q24, q25, [%[out], 384]; stp q26, q27, [%[out], 416];"
        "stp q28, q29, [%[out], 448]; stp q30, q31, [%[out], 480];"
        : "+r"(first)
        : [in] "r"(pattern), [out] "r"(after), "r"(number), "r"(second)
        : "memory", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7",
          "v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15",
          "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23",
          "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31");
}

static const char *sleep_with_vectors(const uint64_t pattern[VECTOR_WORDS], const struct timespec *pause, bool wide)
{
    uint64_t after[VECTOR_WORDS] = { 0 };

    (void)wide; /* SVE is not given to guests by this Xen */
    sleep_with_all(pattern, after, pause);
    return memcmp(pattern, after, sizeof(after)) ? "q" : NULL;
}
