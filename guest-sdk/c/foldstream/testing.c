/* A state in memory, and what tests do with it. */
#ifndef __wasm__

#include "testing.h"
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- The state: entries in the order of their keys. ---- */

typedef struct {
    char *key, *value;
    size_t key_length;
} stored;
typedef struct {
    stored *entries;
    size_t count, capacity;
} memory;

/* The present state, and the one that a test gave. */
static memory now, given_state;

static void *checked(void *allocated) {
    if (allocated == NULL) {
        abort();
    }
    return allocated;
}

static char *duplicate(const char *at, size_t length) {
    char *copy = checked(malloc(length + 1));
    if (length > 0) {
        memcpy(copy, at, length);
    }
    copy[length] = 0;
    return copy;
}

static int order(const stored *entry, fs_text key) {
    size_t length = entry->key_length < key.length ? entry->key_length : key.length;
    int order = memcmp(entry->key, key.at, length);
    return order != 0 ? order : (entry->key_length > key.length) - (entry->key_length < key.length);
}

/* The place of a key, or where it would be. */
static size_t place_of(fs_text key) {
    size_t low = 0, high = now.count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (order(&now.entries[middle], key) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static bool is_at(size_t place, fs_text key) {
    return place < now.count && order(&now.entries[place], key) == 0;
}

static void clear(memory *state) {
    for (size_t place = 0; place < state->count; place++) {
        free(state->entries[place].key);
        free(state->entries[place].value);
    }
    free(state->entries);
    *state = (memory){0};
}

static memory copy_of(const memory *state) {
    memory copy = *state;
    copy.entries = checked(malloc((state->capacity + 1) * sizeof(stored)));
    for (size_t place = 0; place < state->count; place++) {
        const stored *from = &state->entries[place];
        copy.entries[place] = (stored){duplicate(from->key, from->key_length),
            duplicate(from->value, strlen(from->value)), from->key_length};
    }
    return copy;
}

static bool memory_get(fs_text key, fs_text *value) {
    size_t place = place_of(key);
    if (!is_at(place, key)) {
        return false;
    }
    *value = fs_copy(fs_text_of(now.entries[place].value));
    return true;
}

static void memory_put(const fs_entry *write) {
    size_t place = place_of(write->key);
    bool known = is_at(place, write->key);
    if (known) {
        free(now.entries[place].value);
    }
    if (write->deletes) {
        if (known) {
            free(now.entries[place].key);
            memmove(&now.entries[place], &now.entries[place + 1], (now.count - place - 1) * sizeof(stored));
            now.count--;
        }
        return;
    }
    if (!known) {
        if (now.count == now.capacity) {
            now.capacity = now.capacity * 2 + 16;
            now.entries = checked(realloc(now.entries, (now.capacity + 1) * sizeof(stored)));
        }
        memmove(&now.entries[place + 1], &now.entries[place], (now.count - place) * sizeof(stored));
        now.count++;
        now.entries[place] = (stored){duplicate(write->key.at, write->key.length), NULL, write->key.length};
    }
    now.entries[place].value = duplicate(write->value.at, write->value.length);
}

static void memory_put_many(const fs_entry *entries, size_t count) {
    for (size_t place = 0; place < count; place++) {
        memory_put(&entries[place]);
    }
}

static fs_entry *memory_scan(fs_text start, fs_text end, fs_text after, bool backwards, size_t limit,
    size_t *count, bool *more) {
    fs_entry *found = fs_allocate(&fs_instance.batch, (now.count + 1) * sizeof(fs_entry));
    *count = 0;
    *more = false;
    for (size_t step = 0; step < now.count; step++) {
        const stored *entry = &now.entries[backwards ? now.count - 1 - step : step];
        int beyond = after.length == 0 ? 1 : backwards ? -order(entry, after) : order(entry, after);
        if (beyond <= 0 || order(entry, start) < 0 || order(entry, end) >= 0) {
            continue;
        }
        if (*count == limit) {
            *more = true;
            break;
        }
        found[(*count)++] = (fs_entry){fs_copy((fs_text){entry->key, entry->key_length}),
            fs_copy(fs_text_of(entry->value)), false};
    }
    return found;
}

static void print(fs_level level, fs_text message) {
    static const char *const names[] = {"debug", "info", "warn", "error"};
    fprintf(stderr, "%s: %.*s\n", names[level], (int)message.length, message.at);
}

static const fs_backend MEMORY = {memory_get, memory_put_many, memory_scan, print};

/* ---- Tests. ---- */

static int passed, failed;
static bool sound;
/* What was applied so far, and what the next event gets. */
static fs_event *applied;
static size_t applied_count;
/* What these events refer to. */
static fs_arena texts;
static uint64_t next_sequence, next_time;
static char *answer;
static fs_status status;

static void complain(const char *file, int line, const char *what, const char *more) {
    sound = false;
    fprintf(stderr, "%s:%d: %s%s\n", file, line, what, more);
}

void fs_test_check(const char *file, int line, bool holds, const char *what) {
    if (!holds) {
        complain(file, line, "this does not hold: ", what);
    }
}

void fs_test_equal(const char *file, int line, const char *got, const char *wanted) {
    got = got == NULL ? "nothing" : got;
    wanted = wanted == NULL ? "nothing" : wanted;
    if (strcmp(got, wanted) != 0) {
        complain(file, line, "found ", got);
        fprintf(stderr, "%s:%d: instead of %s\n", file, line, wanted);
    }
}

static bool matches(const char *pattern, const char *subject) {
    for (;;) {
        size_t wanted = strcspn(pattern, "."), token = strcspn(subject, ".");
        if (strcmp(pattern, ">") == 0) {
            return true;
        }
        bool any = wanted == 1 && *pattern == '*';
        if (!any && (wanted != token || memcmp(pattern, subject, token) != 0)) {
            return false;
        }
        if (pattern[wanted] != subject[token] || pattern[wanted] == 0) {
            return pattern[wanted] == subject[token];
        }
        pattern += wanted + 1;
        subject += token + 1;
    }
}

/* Makes an event of what a test gives; false if the projection does not read it. */
static bool store(const fs_given *from, fs_event *event) {
    const char *last = strrchr(from->subject, '.');
    const char *kind = from->kind != NULL ? from->kind : last != NULL ? last + 1 : from->subject;
    /* Also of events that do not match: their sequences are missing, as in a stream. */
    *event = (fs_event){.sequence = next_sequence++, .time = {next_time},
        .subject = fs_text_of(from->subject), .kind = fs_text_of(kind),
        .data = fs_text_of(from->data == NULL ? "{}" : from->data)};
    if (from->time != NULL && !fs_read_time(fs_text_of(from->time), &event->time)) {
        complain(from->subject, 0, "this is no time: ", from->time);
    }
    next_time = event->time.nanoseconds + 1000000000;
    bool read = false;
    for (const char *const *subject = foldstream_projection.subjects; *subject != NULL; subject++) {
        read = read || matches(*subject, from->subject);
    }
    return read;
}

/* Applies a batch; if one fails, drops what it wrote. */
static int apply(const fs_event *events, size_t count) {
    memory before = copy_of(&now);
    int index = fs_apply_batch(events, count);
    if (index != FS_NO_EVENT) {
        clear(&now);
        now = before;
    } else {
        clear(&before);
    }
    fs_release(&fs_instance.batch);
    return index;
}

const char *fs_test_failure(const fs_given *events, size_t count) {
    static char message[FS_MESSAGE_MAX];
    applied = checked(realloc(applied, (applied_count + count + 1) * sizeof(fs_event)));
    fs_event *batch = applied + applied_count;
    size_t kept = 0;
    for (size_t place = 0; place < count; place++) {
        if (store(&events[place], &batch[kept])) {
            fs_event *event = &batch[kept++];
            event->subject = fs_keep(&texts, event->subject);
            event->kind = fs_keep(&texts, event->kind);
            event->data = fs_keep(&texts, event->data);
        }
    }
    int index = apply(batch, kept);
    if (index == FS_NO_EVENT) {
        applied_count += kept;
        return NULL;
    }
    memcpy(message, fs_instance.message, sizeof(message));
    status = fs_instance.failure;
    if (apply(batch, (size_t)index) != FS_NO_EVENT) {
        complain("the events before the failing one", 0, "fail on their own: ", fs_instance.message);
    }
    applied_count += (size_t)index;
    return message;
}

bool fs_test_retries(void) { return status == FS_RETRIED; }

void fs_test_given(const char *file, int line, const fs_given *events, size_t count) {
    const char *failure = fs_test_failure(events, count);
    if (failure != NULL) {
        complain(file, line, "an event failed: ", failure);
    }
}

/* A line of a file of events. */
typedef struct {
    fs_text subject, type, time;
} line_record;
FS_RECORD(line_type, line_record, FS_FIELD(line_record, subject), FS_OPTIONAL(line_record, type),
    FS_OPTIONAL(line_record, time));

static void given_line(const char *path, int number, char *line) {
    line_record read = {0};
    char *data = strstr(line, "\"data\":"), *end = strrchr(line, '}');
    if (!fs_decode(&fs_instance.batch, fs_text_of(line), &line_type, &read)) {
        complain(path, number, "this is no event: ", fs_instance.message);
        return;
    }
    /* The data is the last field of a line. */
    fs_given event = {.subject = read.subject.at,
        .data = data == NULL ? NULL : fs_copy((fs_text){data + 7, (size_t)(end - data - 7)}).at,
        .kind = read.type.length > 0 ? read.type.at : NULL,
        .time = read.time.length > 0 ? read.time.at : NULL};
    fs_test_given(path, number, &event, 1);
}

void fs_test_given_file(const char *path) {
    static char line[1 << 16];
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        complain(path, 0, "cannot be read", "");
        return;
    }
    for (int number = 1; fgets(line, sizeof(line), file) != NULL; number++) {
        if (line[strspn(line, " \r\n")] != 0) {
            given_line(path, number, line);
        }
    }
    fclose(file);
}

const char *fs_test_query(const char *name, const char *arguments) {
    fs_text text;
    bool known;
    status = fs_answer_query(fs_text_of(name), fs_text_of(arguments == NULL ? "" : arguments), &text, &known);
    free(answer);
    answer = duplicate(text.at, text.length);
    fs_release(&fs_instance.batch);
    if (!known) {
        complain("the projection", 0, "has no query ", name);
    }
    return status == FS_OK ? answer : NULL;
}

fs_status fs_test_status(void) { return status; }

const char *fs_test_get(const char *key) {
    size_t place = place_of(fs_text_of(key));
    return is_at(place, fs_text_of(key)) ? now.entries[place].value : NULL;
}

size_t fs_test_count(const char *prefix) {
    size_t count = 0;
    for (size_t place = 0; place < now.count; place++) {
        count += strncmp(now.entries[place].key, prefix, strlen(prefix)) == 0;
    }
    return count;
}

void fs_test_restart(void) { fs_reset(); }

/* The first key at which two states differ; NULL if none does. */
static const char *difference(const memory *one, const memory *other) {
    for (size_t place = 0; place < one->count || place < other->count; place++) {
        if (place >= one->count || place >= other->count) {
            return place < one->count ? one->entries[place].key : other->entries[place].key;
        }
        const stored *mine = &one->entries[place], *its = &other->entries[place];
        if (strcmp(mine->key, its->key) != 0 || strcmp(mine->value, its->value) != 0) {
            return mine->key;
        }
    }
    return NULL;
}

static bool same_in_batches(size_t size, bool restarts) {
    fs_reset();
    for (size_t from = 0; from < applied_count; from += size) {
        size_t count = applied_count - from < size ? applied_count - from : size;
        if (apply(applied + from, count) != FS_NO_EVENT) {
            return false;
        }
        if (restarts) {
            fs_test_restart();
        }
    }
    return difference(&given_state, &now) == NULL;
}

void fs_test_same(const char *file, int line) {
    /* Small batches, odd ones, one that splits most tests unevenly, and all at once. */
    size_t sizes[] = {1, 2, 3, 7, 64, applied_count + 1};
    given_state = now;
    for (size_t place = 0; place < 12 && sound; place++) {
        now = (memory){0};
        if (!same_in_batches(sizes[place / 2], place % 2)) {
            const char *key = difference(&given_state, &now);
            complain(file, line, "the result depends on the batches, so some of what the projection "
                "needs is not in its tables: ", key == NULL ? fs_instance.message : key);
        }
        clear(&now);
    }
    now = given_state;
    fs_reset();
}

void fs_test_begin(void) {
    fs_instance.backend = &MEMORY;
    fs_reset();
    clear(&now);
    fs_release(&texts);
    applied_count = 0;
    next_sequence = 1;
    fs_time first;
    fs_read_time(FS_TEXT("2026-01-01T00:00:00Z"), &first);
    next_time = first.nanoseconds;
}

void fs_test_run(const char *name, void (*test)(void)) {
    fs_test_begin();
    sound = true;
    test();
    fs_release(&fs_instance.batch);
    if (sound) {
        passed++;
    } else {
        failed++;
        fprintf(stderr, "%s failed\n", name);
    }
}

int fs_test_end(void) {
    fs_reset();
    clear(&now);
    fs_release(&texts);
    free(applied);
    free(answer);
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0 || passed == 0;
}

#endif
