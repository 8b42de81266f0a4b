/* base/mem.c - allocation that dies with a sentence, and the allocation guard.
 *
 * All but mem_weights() comes from malloc(3)'s family, so that one mem_free() fits all and
 * the sanitizers see every block.  Any thread; the guard belongs to its thread. */
#include "base/mem.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cgroup.h"
#include "base/must.h"

enum {
    MEM_HUGE_PAGE_BYTES = 2 << 20,
    /* From here on a size is compared with what the machine has before it is touched: with
     * overcommit malloc says yes and the kernel kills the process at the first write. */
    MEM_CHECKED_BYTES = 64 << 20,
    MEM_PAGE_BYTES = 4096,
    /* The end of a run takes a huge page of its own where that wastes less than this part. */
    MEM_WASTE_PART = 64,
};

static _Thread_local const char *guard_phase;

static void check_guard(const char *function)
{
    if (!guard_phase)
        return;
    char what[160];
    snprintf(what, sizeof(what), "no allocation while '%s' runs", guard_phase);
    guard_phase = NULL;
    must_fail(__FILE__, __LINE__, function, what);
}

static _Noreturn void die_without_memory(size_t bytes)
{
    char text[96];
    int n = snprintf(text, sizeof(text), "out of memory: %zu bytes were asked for\n", bytes);
    if (write(STDERR_FILENO, text, (size_t)n) < 0)
        _exit(1);
    /* Not exit(3): other threads run on, and their libraries' exit handlers must not meet them. */
    _exit(1);
}

static void *or_die(void *p, size_t bytes)
{
    if (!p)
        die_without_memory(bytes);
    return p;
}

void *mem_alloc(size_t bytes)
{
    check_guard(__func__);
    return or_die(calloc(1, bytes ? bytes : 1), bytes);
}

void *mem_array(size_t count, size_t size)
{
    size_t bytes;
    if (!mem_mul(count, size, &bytes))
        die_without_memory(SIZE_MAX);
    check_guard(__func__);
    return or_die(calloc(1, bytes ? bytes : 1), bytes);
}

/* Not zeroed; NULL when memory is out. */
static void *take_aligned(size_t bytes)
{
    size_t padded;
    if (!mem_add(bytes ? bytes : 1, MEM_ALIGN - 1, &padded) || padded > (size_t)PTRDIFF_MAX)
        return NULL;
    padded &= ~(size_t)(MEM_ALIGN - 1);
    if (padded < MEM_HUGE_PAGE_BYTES)
        return aligned_alloc(MEM_ALIGN, padded);
    if (padded >= MEM_CHECKED_BYTES && padded > mem_available_bytes())
        return NULL;
    void *p = aligned_alloc(MEM_HUGE_PAGE_BYTES, mem_round_up(padded, MEM_HUGE_PAGE_BYTES));
    /* Advice only: without huge pages it is slower, not wrong. */
    if (p)
        (void)madvise(p, mem_round_up(padded, MEM_HUGE_PAGE_BYTES), MADV_HUGEPAGE);
    return p;
}

void *mem_aligned(size_t bytes)
{
    check_guard(__func__);
    return memset(or_die(take_aligned(bytes), bytes), 0, bytes);
}

void *mem_try_aligned(size_t bytes)
{
    check_guard(__func__);
    void *p = take_aligned(bytes);
    return p ? memset(p, 0, bytes) : NULL;
}

void *mem_aligned_raw(size_t bytes)
{
    check_guard(__func__);
    return or_die(take_aligned(bytes), bytes);
}

void *mem_resize(void *p, size_t bytes)
{
    check_guard(__func__);
    return or_die(realloc(p, bytes ? bytes : 1), bytes);
}

/* The length of the mapping for a run; 0 if there is no such length. */
static size_t weights_length(size_t bytes)
{
    if (bytes == 0 || bytes > (size_t)PTRDIFF_MAX - 2 * MEM_HUGE_PAGE_BYTES)
        return 0;
    size_t huge = mem_round_up(bytes, MEM_HUGE_PAGE_BYTES);
    return huge - bytes < bytes / MEM_WASTE_PART ? huge : mem_round_up(bytes, MEM_PAGE_BYTES);
}

void *mem_weights(size_t bytes)
{
    size_t length = weights_length(bytes);
    if (length == 0 || length > mem_available_bytes())
        return NULL;
    size_t reserved = length + MEM_HUGE_PAGE_BYTES;
    char *whole = mmap(NULL, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (whole == MAP_FAILED)
        return NULL;
    size_t before = -(uintptr_t)whole & (MEM_HUGE_PAGE_BYTES - 1);
    char *p = whole + before;
    if (before > 0)
        must_zero(munmap(whole, before));
    if (before < MEM_HUGE_PAGE_BYTES)
        must_zero(munmap(p + length, MEM_HUGE_PAGE_BYTES - before));
    (void)madvise(p, length, MADV_HUGEPAGE);
    return p;
}

void mem_weights_free(void *p, size_t bytes)
{
    if (p)
        must_zero(munmap(p, weights_length(bytes)));
}

char *mem_string(const char *s)
{
    size_t bytes = strlen(s) + 1;
    return memcpy(mem_alloc(bytes), s, bytes);
}

char *mem_format(const char *format, ...)
{
    must(format != NULL); /* also tells gcc, which warns under -fsanitize=undefined */
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    must(n >= 0);
    char *text = mem_alloc((size_t)n + 1);
    va_start(args, format);
    vsnprintf(text, (size_t)n + 1, format, args);
    va_end(args);
    return text;
}

void mem_free(void *p)
{
    if (!p)
        return;
    check_guard(__func__);
    free(p);
}

bool mem_mul(size_t a, size_t b, size_t *out)
{
    size_t product;
    if (__builtin_mul_overflow(a, b, &product))
        return false;
    *out = product;
    return true;
}

bool mem_add(size_t a, size_t b, size_t *out)
{
    size_t sum;
    if (__builtin_add_overflow(a, b, &sum))
        return false;
    *out = sum;
    return true;
}

size_t mem_round_up(size_t bytes, size_t unit)
{
    must(unit > 0 && (unit & (unit - 1)) == 0 && bytes <= SIZE_MAX - (unit - 1));
    return (bytes + unit - 1) & ~(unit - 1);
}

void mem_guard_begin(const char *phase)
{
    must(phase && !guard_phase);
    guard_phase = phase;
}

void mem_guard_end(void)
{
    must(guard_phase);
    guard_phase = NULL;
}

static uint64_t read_available_kib(void)
{
    FILE *f = fopen("/proc/meminfo", "re");
    if (!f)
        return UINT64_MAX / 1024;
    uint64_t kib = UINT64_MAX / 1024;
    char line[256];
    while (fgets(line, sizeof(line), f))
        if (sscanf(line, "MemAvailable: %" SCNu64, &kib) == 1)
            break;
    fclose(f);
    return kib;
}

size_t mem_available_bytes(void)
{
    uint64_t machine = read_available_kib() * 1024;
    uint64_t group = (uint64_t)cgroup_memory_room_bytes();
    return (size_t)(machine < group ? machine : group);
}
