/* What a module exports to a host: the functions of the world `projection`, and `inbox`, in the
 * canonical form of the component model. The structs are the records of wit/foldstream.wit; pointers
 * and sizes have 32 bits. */
#ifdef __wasm__

#include "internal.h"

#include <string.h>

/* ---- What the host provides. ---- */

typedef struct {
    uint8_t tag;
    fs_text text;
} payload;
typedef struct {
    uint8_t some;
    payload value;
} optional_payload;
typedef struct {
    fs_text key;
    optional_payload value;
} put_entry;
typedef struct {
    fs_text key;
    payload value;
} page_entry;
typedef struct {
    page_entry *entries;
    size_t count;
    uint8_t more;
} page;
_Static_assert(sizeof(optional_payload) == 16 && sizeof(put_entry) == 24, "as in the contract");
_Static_assert(sizeof(page_entry) == 20 && sizeof(page) == 12, "as in the contract");

#define IMPORT(interface, function)                                                                 \
    __attribute__((import_module("foldstream:module/" interface "@0.1.0"), import_name(function)))
IMPORT("state", "get") void state_get(const char *key, size_t length, optional_payload *result);
IMPORT("state", "put-many") void state_put_many(const put_entry *entries, size_t count);
IMPORT("state", "scan")
void state_scan(uint32_t selection, uint32_t has_start, const char *start, size_t start_length,
    uint32_t has_end, const char *end, size_t end_length, uint32_t has_after, const char *after,
    size_t after_length, uint32_t direction, uint32_t limit, page *result);
IMPORT("log", "write") void log_write(uint32_t level, const char *message, size_t length);

/* Most entries that a host takes in one call. */
#define PUTS_MAX 65536

static bool host_get(fs_text key, fs_text *value) {
    optional_payload found;
    state_get(key.at, key.length, &found);
    *value = found.value.text;
    return found.some != 0;
}

static void host_put_many(const fs_entry *writes, size_t count) {
    put_entry *entries = fs_allocate(&fs_instance.batch, count * sizeof(put_entry));
    for (size_t place = 0; place < count; place++) {
        entries[place] = (put_entry){writes[place].key,
            {!writes[place].deletes, {0, writes[place].value}}};
    }
    for (size_t from = 0; from < count; from += PUTS_MAX) {
        state_put_many(entries + from, count - from < PUTS_MAX ? count - from : PUTS_MAX);
    }
}

static fs_entry *host_scan(fs_text start, fs_text end, fs_text after, bool backwards, size_t limit,
    size_t *count, bool *more) {
    page found;
    state_scan(1, 1, start.at, start.length, 1, end.at, end.length, after.length > 0, after.at,
        after.length, backwards, limit, &found);
    *count = found.count;
    *more = found.more != 0;
    fs_entry *entries = fs_allocate(&fs_instance.batch, found.count * sizeof(fs_entry));
    for (size_t place = 0; place < found.count; place++) {
        entries[place] = (fs_entry){found.entries[place].key, found.entries[place].value.text, false};
    }
    return entries;
}

static void host_log(fs_level level, fs_text message) {
    log_write((uint32_t)level, message.at, message.length);
}

static const fs_backend HOST = {host_get, host_put_many, host_scan, host_log};

/* ---- What the host calls. ---- */

#define EXPORT(name) __attribute__((export_name(name)))

typedef struct {
    uint8_t some;
    uint32_t value;
} optional_u32;
typedef struct {
    uint8_t some;
    uint64_t value;
} optional_u64;
typedef struct {
    const void *at;
    size_t count;
} list;
typedef struct {
    uint8_t kind;
    fs_text name, description;
    list subjects;
    uint8_t headers;
    struct {
        uint8_t rule;
        union {
            uint32_t token;
            fs_text name;
        } of;
    } key;
    uint32_t state_version;
    optional_u32 attempts, initial_backoff_ms, max_backoff_ms;
    optional_u64 memory_bytes;
    optional_u32 deadline_ms, batch_events;
    optional_u64 state_bytes;
    list queries;
} manifest_record;
_Static_assert(sizeof(manifest_record) == 128, "as in the contract");
typedef struct {
    fs_text name, description;
} query_description;
typedef struct {
    uint8_t some;
    struct {
        uint8_t id;
        fs_text name;
        uint64_t window_ms;
        uint32_t ids_max;
    } settings;
} optional_inbox;
typedef struct {
    uint64_t sequence, time;
    fs_text subject, kind;
    const fs_header *headers;
    size_t header_count;
    payload data;
} host_event;
typedef struct {
    uint8_t failed;
    uint32_t index;
    uint8_t kind;
    fs_text message;
} apply_result;
typedef struct {
    uint8_t failed;
    payload value;
} query_result;
_Static_assert(sizeof(host_event) == 56 && sizeof(apply_result) == 20, "as in the contract");
_Static_assert(sizeof(query_result) == 16, "as in the contract");

static fs_text text_or_empty(const char *string) { return fs_text_of(string == NULL ? "" : string); }

EXPORT("cabi_realloc")
void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
    (void)align;
    fs_instance.backend = &HOST;
    void *memory = fs_allocate(&fs_instance.batch, size);
    if (old_size > 0) {
        memcpy(memory, old, old_size < size ? old_size : size);
    }
    return memory;
}

static optional_u32 some_u32(uint32_t value) { return (optional_u32){value != 0, value}; }
static optional_u64 some_u64(uint64_t value) { return (optional_u64){value != 0, value}; }

EXPORT("manifest") const manifest_record *export_manifest(void) {
    static manifest_record out;
    static fs_text subjects[64];
    static query_description queries[256];
    const fs_projection *asked = &foldstream_projection;
    size_t subject_count = 0, query_count = 0;
    while (subject_count < 64 && asked->subjects[subject_count] != NULL) {
        subjects[subject_count] = fs_text_of(asked->subjects[subject_count]);
        subject_count++;
    }
    const fs_query *query = asked->queries;
    for (; query != NULL && query->name != NULL && query_count < 256; query++) {
        queries[query_count++] =
            (query_description){fs_text_of(query->name), text_or_empty(query->description)};
    }
    out = (manifest_record){
        .name = fs_text_of(asked->name),
        .description = text_or_empty(asked->description),
        .subjects = {subjects, subject_count},
        .headers = asked->headers,
        .key.rule = (uint8_t)asked->key.rule,
        .state_version = asked->state_version == 0 ? 1 : asked->state_version,
        .attempts = some_u32(asked->attempts),
        .initial_backoff_ms = some_u32(asked->initial_backoff_ms),
        .max_backoff_ms = some_u32(asked->max_backoff_ms),
        .memory_bytes = some_u64(asked->memory_bytes),
        .deadline_ms = some_u32(asked->deadline_ms),
        .batch_events = some_u32(asked->batch_events),
        .state_bytes = some_u64(asked->state_bytes),
        .queries = {queries, query_count},
    };
    if (asked->key.rule == FS_SUBJECT_TOKEN) {
        out.key.of.token = asked->key.token;
    } else {
        out.key.of.name = text_or_empty(asked->key.name);
    }
    return &out;
}

EXPORT("inbox") const optional_inbox *export_inbox(void) {
    static optional_inbox out;
    _Static_assert(sizeof(out) == 40, "as in the contract");
    if (foldstream_projection.inbox.window_ms > 0) {
        uint32_t ids_max = foldstream_projection.inbox.ids_max;
        out.some = 1;
        out.settings.id = (uint8_t)foldstream_projection.inbox.id;
        out.settings.name = text_or_empty(foldstream_projection.inbox.name);
        out.settings.window_ms = foldstream_projection.inbox.window_ms;
        out.settings.ids_max = ids_max == 0 ? 1000000 : ids_max;
    }
    return &out;
}

EXPORT("apply") const apply_result *export_apply(const host_event *given, size_t count) {
    static apply_result out;
    fs_instance.backend = &HOST;
    fs_event *events = fs_allocate(&fs_instance.batch, count * sizeof(fs_event));
    for (size_t place = 0; place < count; place++) {
        const host_event *from = &given[place];
        events[place] = (fs_event){from->sequence, {from->time}, from->subject, from->kind,
            from->headers, from->header_count, from->data.text};
    }
    int failed = fs_apply_batch(events, count);
    fs_release(&fs_instance.batch);
    out = (apply_result){0};
    if (failed != FS_NO_EVENT) {
        out = (apply_result){1, (uint32_t)failed, fs_instance.failure != FS_RETRIED,
            fs_text_of(fs_instance.message)};
    }
    return &out;
}

EXPORT("query")
const query_result *export_query(const char *name, size_t length, uint32_t tag, const char *arguments,
    size_t arguments_length) {
    static query_result out;
    (void)tag;
    fs_instance.backend = &HOST;
    bool known;
    fs_text answer;
    fs_status status = fs_answer_query((fs_text){name, length}, (fs_text){arguments, arguments_length},
        &answer, &known);
    out = (query_result){status != FS_OK, {0, answer}};
    if (status != FS_OK && known) {
        out.value.tag = status == FS_INVALID ? 1 : status == FS_NOT_FOUND ? 2 : 3;
        out.value.text = fs_text_of(fs_instance.message);
    }
    return &out;
}

/* The host has read the answer. */
EXPORT("cabi_post_query") void post_query(const query_result *result) {
    (void)result;
    fs_release(&fs_instance.batch);
}

#endif
