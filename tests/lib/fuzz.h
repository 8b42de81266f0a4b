/* tests/lib/fuzz.h - one entry point per fuzz target, three ways to run it.
 *
 * A file tests/fuzz/fuzz_NAME.c holds one FUZZ(NAME) { ... data, bytes ... } body.  Built
 * with libFuzzer (make fuzz) it is a fuzzer; in the test binary it is a test of suite
 * `fuzz` that runs the body over every file of tests/fuzz/corpus/NAME/ and over a few
 * thousand random changes of them. */
#pragma once

#include <stddef.h>
#include <stdint.h>

typedef void fuzz_body(const uint8_t *data, size_t bytes);

#ifdef FUZZ_LIBFUZZER
#define FUZZ(name) \
    static fuzz_body fuzz_##name; \
    int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes); \
    int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) \
    { \
        fuzz_##name(data, bytes); \
        return 0; \
    } \
    static void fuzz_##name(const uint8_t *data, size_t bytes)
#else
#include "tests/lib/test.h"
/* Runs the body over the corpus and its mutations. */
void fuzz_replay(const char *name, fuzz_body *body);
#define FUZZ(name) \
    static fuzz_body fuzz_##name; \
    TEST_WITHIN(fuzz_##name##_survives_its_corpus, 60) \
    { \
        fuzz_replay(#name, fuzz_##name); \
    } \
    static void fuzz_##name(const uint8_t *data, size_t bytes)
#endif
