/* base/mem.h - the kinds of memory that the house knows.
 *
 * start-up   mem_alloc() and friends: die with a message when memory is out, which is
 *            right while a program starts and wrong afterwards
 * mapping    weights, read-only (model/safetensors.c)
 * blobs      reference-counted payloads (base/blob.h)
 *
 * The allocation guard proves that a step allocates nothing: between guard_begin() and
 * guard_end() any mem_*() call of that thread is fatal and names the phase. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MEM_ALIGN = 64 }; /* cache line and widest vector */

/* Zeroed; never NULL; free with mem_free(). */
void *mem_alloc(size_t bytes);
/* Zeroed array; dies if count * size overflows, so both must be our own numbers or checked. */
void *mem_array(size_t count, size_t size);
/* Aligned to MEM_ALIGN, size rounded up to it, zeroed; huge pages are asked for from 2 MiB on. */
void *mem_aligned(size_t bytes);
/* Like mem_aligned(), but NULL when memory is out: for sizes that come from outside. */
void *mem_try_aligned(size_t bytes);
/* Like mem_aligned(), but contents undefined: for payloads that are written whole. */
void *mem_aligned_raw(size_t bytes);
/* Grows or shrinks like realloc(3); new bytes are not zeroed. */
void *mem_resize(void *p, size_t bytes);
/* A run for weights: its own mapping aligned to 2 MiB, huge pages asked for, zeroed; NULL when
 * memory is out.  Not under the guard's rule; give it back with its size. */
void *mem_weights(size_t bytes);
void mem_weights_free(void *p, size_t bytes);
char *mem_string(const char *s);
char *mem_format(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Frees what any function above returned; NULL is fine. */
void mem_free(void *p);

/* false if the exact result does not fit; `*out` is then untouched. */
bool mem_mul(size_t a, size_t b, size_t *out);
bool mem_add(size_t a, size_t b, size_t *out);
/* Smallest multiple of `unit` (a power of two) that is at least `bytes`. */
size_t mem_round_up(size_t bytes, size_t unit);

/* Allocation guard of the calling thread; nests not.  `phase` must outlive the phase. */
void mem_guard_begin(const char *phase);
void mem_guard_end(void);

/* Bytes that this process may still use: the smaller of MemAvailable and its cgroup's room. */
size_t mem_available_bytes(void);
