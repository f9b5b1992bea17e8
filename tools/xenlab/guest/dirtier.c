/*
 * The lab's self-checking guest program.
 *
 * Each page it owns holds a pattern that follows from the page's index and a sequence number. What a
 * page must hold is also noted in a ledger, in memory of its own. Worker threads, one per vCPU, rewrite
 * pages at the rate asked for, check each before they rewrite it, and sweep through all of them. So a
 * page that comes back old, torn, swapped or damaged after a save, a restore or a migration is seen.
 *
 * A second thread per vCPU keeps a pattern in its vector registers while it sleeps, and computes in
 * them: a vCPU that comes back without its floating point state is seen.
 *
 * Kernel command line: lab.pages=N (0: off), lab.rate=N (pages per second, 0: as fast as possible),
 * lab.ymm=0 (leave the ymm registers alone: libxc's way of resuming a suspended domain loses them).
 * A line on its console, like "rate=300 ymm=1", changes the last two while it runs.
 * Output, five lines per second on the console, and one per finding: docs/lab.md.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#ifndef GRND_INSECURE /* Linux has it from 5.6 on, Debian 11's libc not yet */
#define GRND_INSECURE 0x0004
#endif

#ifdef __aarch64__
#include "vectors_arm64.h"
#else
#include "vectors_x86.h"
#endif

enum {
    PAGE_BYTES = 4096,
    WORDS = PAGE_BYTES / 8,
    FIRST_FILLER = 3, /* words: magic, index, sequence number, filler ..., checksum */
    BLOCK_BYTES = 1 << 20,
    TICK_US = 10000,
    MAX_VCPUS = 64,
    LINES_PER_SECOND = 5, /* tests wait for the next ones */
    MAX_SHOUTS = 40, /* lines about corruption per second; the count goes on */
    SWEEP_SECONDS = 20,
};
#define MAGIC UINT64_C(0x4c41422d50414745) /* "LAB-PAGE" */

struct worker {
    pthread_t thread, fpu_thread;
    unsigned cpu;
    uint64_t first, count;  /* its slice of the pages */
    _Atomic uint64_t dirtied, verified, corrupt, fpu_checks, fpu_corrupt;
};

static uint64_t **pages;  /* where each page is */
static uint64_t *ledger;  /* the sequence number each page must have */
static struct worker workers[MAX_VCPUS];
static unsigned nr_workers;
static atomic_int shouts;
static int pagemap_fd = -1;
static _Atomic uint64_t rate; /* pages per second, of all workers; 0: as fast as possible */
static atomic_bool uses_ymm;

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Write one whole line to the console with one call, so that lines of threads do not mix. */
static void say(const char *format, ...)
{
    char line[512];
    va_list arguments;

    va_start(arguments, format);
    int length = vsnprintf(line, sizeof(line) - 1, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof(line) - 2)
        length = sizeof(line) - 2;
    line[length++] = '\n';
    if (write(STDOUT_FILENO, line, length) < 0)
        abort();
}

static double seconds(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= UINT64_C(0xbf58476d1ce4e5b9);
    x ^= x >> 27;
    x *= UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static inline uint64_t next(uint64_t x)
{
    x ^= x << 13;
    x ^= x >> 7;
    return x ^ (x << 17);
}

static uint64_t checksum(uint64_t sum, uint64_t word)
{
    return ((sum << 5) | (sum >> 59)) + word;
}

static void fill(uint64_t *page, uint64_t index, uint64_t sequence)
{
    uint64_t filler = mix(index * UINT64_C(0x9e3779b97f4a7c15) + sequence) | 1;
    uint64_t sum = checksum(checksum(checksum(0, MAGIC), index), sequence);

    page[0] = MAGIC;
    page[1] = index;
    page[2] = sequence;
    for (int i = FIRST_FILLER; i < WORDS - 1; i++) {
        filler = next(filler);
        page[i] = filler;
        sum = checksum(sum, filler);
    }
    page[WORDS - 1] = sum;
}

/* Guest frame number of an address, or 0 where the kernel does not tell. */
static uint64_t pfn_of(const void *address)
{
    uint64_t entry = 0;

    if (pagemap_fd < 0 ||
        pread(pagemap_fd, &entry, sizeof(entry), (uintptr_t)address / PAGE_BYTES * 8) != sizeof(entry))
        return 0;
    return entry & ((UINT64_C(1) << 55) - 1);
}

static void verify(struct worker *worker, uint64_t index)
{
    static _Thread_local uint64_t must[WORDS];
    uint64_t *page = pages[index];

    fill(must, index, ledger[index]);
    worker->verified++;
    if (memcmp(must, page, PAGE_BYTES) == 0)
        return;
    worker->corrupt++;
    if (shouts++ < MAX_SHOUTS) {
        int word = 0, wrong = 0;

        for (int i = WORDS - 1; i >= 0; i--)
            if (must[i] != page[i]) {
                word = i;
                wrong++;
            }
        say("CORRUPT pfn=0x%" PRIx64 " page=%" PRIu64 " word=%d wrong_words=%d expected=0x%016" PRIx64
            " found=0x%016" PRIx64 " seq_expected=%" PRIu64 " seq_found=%" PRIu64 " index_found=%" PRIu64,
            pfn_of(page), index, word, wrong, must[word], page[word], must[2], page[2], page[1]);
    }
    memcpy(page, must, PAGE_BYTES); /* so that one damage is counted once */
}

static void rewrite(struct worker *worker, uint64_t index)
{
    verify(worker, index);
    fill(pages[index], index, ++ledger[index]);
    worker->dirtied++;
}

static void pin(unsigned cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof(set), &set); /* best effort: a vCPU may be offline */
}

static void *work(void *argument)
{
    struct worker *worker = argument;
    uint64_t random = mix(worker->cpu + 1) | 1, swept = 0;
    double last = seconds(CLOCK_MONOTONIC), to_write = 0, to_sweep = 0;

    pin(worker->cpu);
    for (;;) {
        const double own_rate = (double)rate / nr_workers;

        if (own_rate > 0)
            usleep(TICK_US);
        double now = seconds(CLOCK_MONOTONIC), passed = now - last;

        last = now;
        if (passed > 0.2)
            passed = 0.2; /* it was stopped, or is starved: do not make up for it */
        to_write += own_rate > 0 ? own_rate * passed : 64;
        to_sweep += passed * worker->count / SWEEP_SECONDS;
        for (; to_write >= 1; to_write--) {
            random = next(random);
            rewrite(worker, worker->first + random % worker->count);
        }
        for (; to_sweep >= 1; to_sweep--)
            verify(worker, worker->first + swept++ % worker->count);
    }
    return NULL;
}

/* A chaotic map: one wrong bit anywhere makes another result. */
static double logistic(double x, int rounds)
{
    for (int i = 0; i < rounds; i++)
        x = 3.99 * x * (1 - x);
    return x;
}

static void *compute(void *argument)
{
    struct worker *worker = argument;
    const struct timespec pause = { .tv_nsec = 20000000 };
    const double seed = 0.1 + worker->cpu / 100.0, expected = logistic(seed, 2000);
    uint64_t pattern[VECTOR_WORDS], round = 0;

    pin(worker->cpu);
    for (;;) {
        round++;
        for (int i = 0; i < VECTOR_WORDS; i++)
            pattern[i] = mix(worker->cpu * 1000003 + round * 64 + i);
        const char *wrong = sleep_with_vectors(pattern, &pause, uses_ymm && round % 2);

        if (logistic(seed, 2000) != expected)
            wrong = "arithmetic";
        worker->fpu_checks++;
        if (wrong) {
            worker->fpu_corrupt++;
            if (shouts++ < MAX_SHOUTS)
                say("FPU-CORRUPT vcpu=%u what=%s round=%" PRIu64, worker->cpu, wrong, round);
        }
    }
    return NULL;
}

static uint64_t hash(const unsigned char *data, size_t length)
{
    uint64_t sum = UINT64_C(0xcbf29ce484222325);

    for (size_t i = 0; i < length; i += 8) {
        uint64_t word;

        memcpy(&word, data + i, 8);
        sum = mix(sum ^ word) + i;
    }
    return sum;
}

static void *memory(size_t length)
{
    void *address = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (address == MAP_FAILED) {
        say("LAB-GUEST-FAILED no memory for %zu bytes", length);
        exit(1);
    }
    return address;
}

/* A number from the kernel command line. */
static uint64_t option(const char *name, uint64_t otherwise)
{
    char line[4096] = " ", key[64];
    int fd = open("/proc/cmdline", O_RDONLY);
    ssize_t length = read(fd, line + 1, sizeof(line) - 2);

    close(fd);
    line[length > 0 ? length + 1 : 1] = '\0';
    snprintf(key, sizeof(key), " %s=", name);
    const char *found = strstr(line, key);
    return found ? strtoull(found + strlen(key), NULL, 10) : otherwise;
}

/*
 * Take `count` pages spread over memory: touch a span that is larger by up to half of what is free, keep
 * evenly spaced pages, give the rest back.
 */
static void take_pages(uint64_t count)
{
    uint64_t free_pages = sysconf(_SC_AVPHYS_PAGES), span = count;

    if (count * 5 / 4 + 2048 > free_pages) {
        say("LAB-GUEST-FAILED lab.pages=%" PRIu64 " do not fit: %" PRIu64 " pages are free", count, free_pages);
        exit(1);
    }
    if (span < free_pages / 2)
        span = free_pages / 2 < count * 4 ? free_pages / 2 : count * 4;
    unsigned char *area = memory(span * PAGE_BYTES);

    madvise(area, span * PAGE_BYTES, MADV_NOHUGEPAGE);
    pages = memory(count * sizeof(*pages));
    ledger = memory(count * sizeof(*ledger));
    for (uint64_t i = 0; i < span; i++)
        area[i * PAGE_BYTES] = 1;
    for (uint64_t i = 0, kept = 0; i < span; i++)
        if (kept < count && i == kept * span / count)
            pages[kept++] = (uint64_t *)(area + i * PAGE_BYTES);
        else
            madvise(area + i * PAGE_BYTES, PAGE_BYTES, MADV_DONTNEED);
    mlock2(area, span * PAGE_BYTES, MLOCK_ONFAULT);
    mlock2(pages, count * sizeof(*pages), 0);
    mlock2(ledger, count * sizeof(*ledger), 0);
    for (uint64_t i = 0; i < count; i++)
        fill(pages[i], i, ledger[i] = 1);
}

/* Take what is asked for on the console, a line each time. */
static void *listen(void *unused)
{
    char line[128];
    struct termios terminal;
    uint64_t new_rate;
    unsigned new_ymm;

    if (tcgetattr(STDIN_FILENO, &terminal) == 0) {
        terminal.c_lflag &= ~(tcflag_t)ECHO; /* it would come between the lines printed */
        tcsetattr(STDIN_FILENO, TCSANOW, &terminal);
    }
    while (fgets(line, sizeof(line), stdin))
        if (sscanf(line, "rate=%" SCNu64 " ymm=%u", &new_rate, &new_ymm) == 2) {
            uses_ymm = new_ymm;
            rate = new_rate;
        }
    return unused;
}

static void start(pthread_t *thread, void *(*function)(void *), void *argument)
{
    int error = pthread_create(thread, NULL, function, argument);

    if (error) {
        say("LAB-GUEST-FAILED pthread_create: %s", strerror(error));
        exit(1);
    }
}

int main(void)
{
    const uint64_t nr_pages = option("lab.pages", 4096);
    pthread_t listener;

    rate = option("lab.rate", 1000);
    uses_ymm = option("lab.ymm", 1);
    unsigned char *block = memory(BLOCK_BYTES);
    double uptime = 0;

    for (size_t done = 0; done < BLOCK_BYTES;) {
        ssize_t got = getrandom(block + done, BLOCK_BYTES - done, GRND_INSECURE);

        if (got < 0 && errno != EINTR)
            abort();
        done += got > 0 ? got : 0;
    }
    mlock2(block, BLOCK_BYTES, 0);
    pagemap_fd = open("/proc/self/pagemap", O_RDONLY);
    nr_workers = sysconf(_SC_NPROCESSORS_ONLN);
    if (nr_workers > MAX_VCPUS)
        nr_workers = MAX_VCPUS;
    if (nr_pages)
        take_pages(nr_pages);
    for (unsigned i = 0; i < nr_workers; i++) {
        struct worker *worker = &workers[i];

        worker->cpu = i;
        worker->first = nr_pages * i / nr_workers;
        worker->count = nr_pages * (i + 1) / nr_workers - worker->first;
        start(&worker->fpu_thread, compute, worker);
        if (worker->count)
            start(&worker->thread, work, worker);
    }
    start(&listener, listen, NULL);

    for (uint64_t counter = 1;; counter++) {
        uint64_t dirtied = 0, verified = 0, corrupt = 0, fpu_checks = 0, fpu_corrupt = 0;
        double now = seconds(CLOCK_MONOTONIC);

        if (counter % LINES_PER_SECOND == 0)
            shouts = 0;
        if (now < uptime)
            say("CLOCK-CORRUPT uptime=%.2f after=%.2f", now, uptime);
        uptime = now;
        for (unsigned i = 0; i < nr_workers; i++) {
            dirtied += workers[i].dirtied;
            verified += workers[i].verified;
            corrupt += workers[i].corrupt;
            fpu_checks += workers[i].fpu_checks;
            fpu_corrupt += workers[i].fpu_corrupt;
        }
        say("LAB counter=%" PRIu64 " uptime=%.2f hash=%016" PRIx64 " vcpus=%ld dirtied=%" PRIu64 " rate=%" PRIu64
            " verified=%" PRIu64 " corrupt=%" PRIu64 " fpu=%s fpu_checks=%" PRIu64 " pages=%" PRIu64 " ymm=%d",
            counter, uptime, hash(block, BLOCK_BYTES), sysconf(_SC_NPROCESSORS_ONLN), dirtied, rate, verified,
            corrupt, fpu_corrupt ? "CORRUPT" : "ok", fpu_checks, nr_pages, (int)uses_ymm);
        usleep(1000000 / LINES_PER_SECOND);
    }
}
