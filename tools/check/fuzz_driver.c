// SPDX-License-Identifier: Apache-2.0
/*
 * A fuzzing driver for compilers without libFuzzer.
 *
 * Owns the loop around LLVMFuzzerTestOneInput(): it replays the corpus, then feeds random mutations of it until the time is up.
 * It has no coverage feedback, so it finds shallow faults only; build with clang for more. It takes the libFuzzer options that
 * the Makefile passes (-max_total_time, -artifact_prefix) and -seed; other arguments are corpus files or directories.
 * The input at hand is on disk before each run, so that whatever ends the process leaves it behind.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { INPUT_BYTES_MAX = 4096, CORPUS_COUNT_MAX = 4096 };

static struct {
    uint8_t *data;
    size_t bytes;
} corpus[CORPUS_COUNT_MAX];
static size_t corpus_count;
static uint64_t random_state;

static uint64_t random_next(void)
{ /* splitmix64 */
    uint64_t z = (random_state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static void corpus_add_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file || corpus_count == CORPUS_COUNT_MAX) {
        if (file) {
            fclose(file);
        }
        return;
    }
    uint8_t *data = malloc(INPUT_BYTES_MAX);
    if (data) {
        corpus[corpus_count].data = data;
        corpus[corpus_count].bytes = fread(data, 1, INPUT_BYTES_MAX, file);
        corpus_count++;
    }
    fclose(file);
}

static void corpus_add(const char *path)
{
    struct stat status;
    if (stat(path, &status)) {
        return;
    }
    if (!S_ISDIR(status.st_mode)) {
        corpus_add_file(path);
        return;
    }
    DIR *directory = opendir(path);
    struct dirent *entry;
    while (directory && (entry = readdir(directory))) {
        char name[4096];
        int n = snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        if (entry->d_name[0] != '.' && n > 0 && (size_t)n < sizeof name) {
            corpus_add(name);
        }
    }
    if (directory) {
        closedir(directory);
    }
}

static size_t mutate(uint8_t *data, size_t bytes)
{
    static const uint64_t edges[] = {0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0xffffffff, INT64_MAX, UINT64_MAX};
    for (uint64_t rounds = 1 + random_next() % 8; rounds; rounds--) {
        size_t at = bytes ? random_next() % bytes : 0;
        switch (random_next() % 5) {
        case 0:
            if (bytes) {
                data[at] ^= (uint8_t)(1u << random_next() % 8);
            }
            break;
        case 1:
            if (bytes) {
                data[at] = (uint8_t)random_next();
            }
            break;
        case 2: { /* a boundary value, in any width that fits */
            size_t width = (size_t)1 << random_next() % 4;
            if (at + width <= bytes) {
                memcpy(data + at, &edges[random_next() % (sizeof edges / sizeof *edges)], width);
            }
            break;
        }
        case 3:
            bytes = random_next() % (bytes + 1);
            break;
        default:
            while (bytes < INPUT_BYTES_MAX && random_next() % 16) {
                data[bytes++] = (uint8_t)random_next();
            }
        }
    }
    return bytes;
}

static char last_path[4096];

static void forget_last(void) { unlink(last_path); }

int main(int argc, char **argv)
{
    long seconds = 10;
    /* What is tried is kept beside the program, for who looks into a crash. */
    char beside[2048];
    const char *slash = strrchr(argv[0], '/'), *prefix = beside;
    snprintf(beside, sizeof beside, "%.*s", slash ? (int)(slash - argv[0]) + 1 : 0, argv[0]);
    random_state = (uint64_t)time(NULL);
    for (int i = 1; i < argc; i++) {
        if (!strncmp(argv[i], "-max_total_time=", 16)) {
            seconds = strtol(argv[i] + 16, NULL, 10);
        } else if (!strncmp(argv[i], "-artifact_prefix=", 17)) {
            prefix = argv[i] + 17;
        } else if (!strncmp(argv[i], "-seed=", 6)) {
            random_state = strtoull(argv[i] + 6, NULL, 10);
        } else if (argv[i][0] != '-') {
            corpus_add(argv[i]);
        }
    }
    printf("seed %llu, %zu inputs in the corpus\n", (unsigned long long)random_state, corpus_count);
    fflush(stdout);
    for (size_t i = 0; i < corpus_count; i++) {
        LLVMFuzzerTestOneInput(corpus[i].data, corpus[i].bytes);
    }

    snprintf(last_path, sizeof last_path, "%slast-input-%ld", prefix, (long)getpid());
    atexit(forget_last); /* a crash does not come here, and leaves it */
    int last = open(last_path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    uint8_t *input = malloc(INPUT_BYTES_MAX);
    if (last < 0 || !input) {
        return 1;
    }
    unsigned long long runs = 0;
    for (time_t end = time(NULL) + seconds; time(NULL) < end; runs++) {
        size_t bytes = 0;
        if (corpus_count && random_next() % 16) {
            size_t i = random_next() % corpus_count;
            bytes = corpus[i].bytes;
            memcpy(input, corpus[i].data, bytes);
        }
        bytes = mutate(input, bytes);
        if (ftruncate(last, 0) || pwrite(last, input, bytes, 0) != (ssize_t)bytes) {
            return 1;
        }
        /* An exact allocation, so that the sanitizer sees an overrun of one byte. */
        uint8_t *exact = malloc(bytes ? bytes : 1);
        if (!exact) {
            return 1;
        }
        memcpy(exact, input, bytes);
        LLVMFuzzerTestOneInput(exact, bytes);
        free(exact);
    }
    close(last);
    free(input);
    for (size_t i = 0; i < corpus_count; i++) {
        free(corpus[i].data);
    }
    printf("%llu runs, nothing found\n", runs);
    return 0;
}
