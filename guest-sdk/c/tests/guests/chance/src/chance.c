/* Stores all that differs from run to run elsewhere, and how the system is out of reach. */
#include "foldstream.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    uint64_t clock, cpu, drawn, secret;
    bool slept, file, folder, environment;
} sight;
FS_RECORD(sight_type, sight, FS_FIELD(sight, clock), FS_FIELD(sight, cpu), FS_FIELD(sight, drawn),
          FS_FIELD(sight, secret), FS_FIELD(sight, slept), FS_FIELD(sight, file),
          FS_FIELD(sight, folder), FS_FIELD(sight, environment));

static fs_table seen = FS_TABLE("seen", sight_type, FS_U64);

static uint64_t now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static fs_status fail(fs_text how) {
    if (fs_text_equal(how, FS_TEXT("assert"))) {
        return fs_reject("it does not hold");
    }
    /* More than there is; written to, or a compiler leaves it out. */
    volatile char *large = NULL;
    for (size_t size = (size_t)1 << 20; size < (size_t)1 << 31; size *= 2) {
        large = malloc(size);
        if (large == NULL) {
            abort();
        }
        large[size - 1] = 1;
    }
    return FS_OK;
}

static fs_status apply(const fs_event *event) {
    if (fs_text_equal(event->kind, FS_TEXT("fail"))) {
        return fail(event->data);
    }
    uint64_t before = now(CLOCK_MONOTONIC);
    sleep(3600);
    sight sight = {.clock = now(CLOCK_REALTIME), .drawn = (uint64_t)rand()};
    sight.slept = now(CLOCK_MONOTONIC) - before >= 3600000000000;
    getentropy(&sight.secret, sizeof(sight.secret));
    sight.file = fopen("/etc/passwd", "r") != NULL;
    sight.folder = opendir("/") != NULL;
    sight.environment = getenv("PATH") != NULL;
    fs_set(&seen, FS_KEY(event->sequence), &sight);
    printf("printed %d\n", (int)event->sequence);
    fflush(stdout);
    return FS_OK;
}

const fs_projection foldstream_projection = {
    .name = "chance",
    .subjects = (const char *const[]){"chance.*", NULL},
    .tables = (fs_table *const[]){&seen, NULL},
    .apply = apply,
};
