/* Keys and tables. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

/* Longest key that a host accepts, in bytes. */
#define KEY_BYTES_MAX 1024
/* Entries that all tables of an instance together keep decoded, and the size of the memory that they
 * may take before they start empty. */
#define ENTRIES_MAX 32768
#define KEPT_BYTES_MAX ((size_t)8 << 20)
/* Most entries of a scan to request at once. */
#define PAGE_ENTRIES_MAX 1000

/* ---- Keys: readable text that sorts like the keys, the same in every SDK. ---- */

static int width(fs_kind kind) {
    switch (kind) {
    case FS_U8:
    case FS_I8: return 3;
    case FS_U16:
    case FS_I16: return 5;
    case FS_U32:
    case FS_I32: return 10;
    case FS_I64: return 19;
    default: return 20;
    }
}

static unsigned bits(fs_kind kind) {
    return 8u << ((unsigned)kind - (kind >= FS_I8 ? (unsigned)FS_I8 : (unsigned)FS_U8));
}

void fs_escape(fs_buffer *buffer, fs_text text) {
    static const char hex[] = "0123456789ABCDEF";
    for (size_t place = 0; place < text.length; place++) {
        unsigned char next = (unsigned char)text.at[place];
        if (next < 0x20 || next == '/' || next == '%' || next == 0x7f) {
            fs_put_char(buffer, '%');
            fs_put_char(buffer, hex[next >> 4]);
            fs_put_char(buffer, hex[next & 15]);
        } else {
            fs_put_char(buffer, (char)next);
        }
    }
}

static bool write_integer(fs_buffer *buffer, fs_kind kind, fs_part part) {
    bool is_signed = kind >= FS_I8;
    unsigned shift = 64 - bits(kind);
    int64_t number = (int64_t)part.number;
    bool negative = part.kind == FS_I64 && number < 0;
    bool fits = is_signed ? (part.kind == FS_I64 || number >= 0) &&
            (int64_t)((uint64_t)number << shift) >> shift == number
                          : !negative && part.number << shift >> shift == part.number;
    if (!fits) {
        return fs_mismatch("a number does not fit into its part of the key");
    }
    if (is_signed) {
        fs_put_char(buffer, negative ? 'n' : 'p');
        /* The distance from the smallest: it rises with the number, as texts must. */
        part.number += negative ? (uint64_t)1 << (bits(kind) - 1) : 0;
    }
    fs_put_digits(buffer, part.number, width(kind));
    return true;
}

static bool write_part(fs_buffer *buffer, fs_kind kind, fs_part part) {
    bool integer = kind >= FS_U8 && kind <= FS_I64;
    bool given_integer = part.kind == FS_U64 || part.kind == FS_I64;
    /* true and false are integers in C11. */
    bool flag = kind == FS_BOOL && given_integer && part.number <= 1;
    if (integer ? !given_integer : part.kind != kind && !flag) {
        return fs_mismatch("a part of the key is of another type");
    }
    switch (kind) {
    case FS_STRING:
        fs_escape(buffer, part.text);
        return fs_is_utf8(part.text) || fs_mismatch("a key is not UTF-8");
    case FS_BOOL:
        fs_put_char(buffer, part.number ? '1' : '0');
        return true;
    case FS_DATE:
        fs_put_date(buffer, (fs_date){(int32_t)part.number});
        return part.number <= 2932896 || fs_mismatch("expected a date from 1970 to 9999 in the key");
    case FS_TIME:
        fs_put_time(buffer, (fs_time){part.number});
        return true;
    default:
        return write_integer(buffer, kind, part);
    }
}

static size_t part_count(const fs_kind *kinds) {
    size_t count = 0;
    while (count < 4 && kinds[count] != FS_NO_KIND) {
        count++;
    }
    return count;
}

/* Writes the parts of a key, each behind a slash. */
static bool write_parts(fs_buffer *buffer, const fs_kind *kinds, fs_key key) {
    for (size_t place = 0; place < key.count; place++) {
        fs_put_char(buffer, '/');
        if (!write_part(buffer, kinds[place], key.parts[place])) {
            return false;
        }
    }
    return true;
}

bool fs_write_key(fs_buffer *buffer, const fs_kind *kinds, fs_key key) {
    if (key.count != part_count(kinds)) {
        return fs_mismatch("expected %d parts in the key", (int)part_count(kinds));
    }
    return write_parts(buffer, kinds, key);
}

static bool read_integer(fs_kind kind, fs_text text, fs_part *part) {
    bool is_signed = kind >= FS_I8;
    const char *at = text.at + is_signed;
    uint64_t most = ~(uint64_t)0 >> (64 - bits(kind) + is_signed), number = 0;
    if (text.length != (size_t)(width(kind) + is_signed)) {
        return false;
    }
    for (; at < text.at + text.length; at++) {
        uint64_t digit = (uint64_t)(*at - '0');
        if (digit > 9 || digit > most || number > (most - digit) / 10) {
            return false;
        }
        number = number * 10 + digit;
    }
    if (is_signed && *text.at == 'n') {
        number -= (uint64_t)1 << (bits(kind) - 1);
    }
    *part = (fs_part){is_signed ? FS_I64 : FS_U64, {0}, number};
    return !is_signed || *text.at == 'n' || *text.at == 'p';
}

static bool read_text(fs_arena *arena, fs_text text, fs_part *part) {
    fs_buffer buffer = {.arena = arena};
    size_t from = 0;
    for (size_t at = 0; at < text.length; at++) {
        if (text.at[at] != '%') {
            continue;
        }
        fs_put(&buffer, text.at + from, at - from);
        int value = 0;
        if (text.length - at < 3 || text.at[at + 1] < '0' || text.at[at + 1] > '7') {
            return false;
        }
        for (int place = 1; place <= 2; place++) {
            char digit = text.at[at + (size_t)place];
            int found = digit >= '0' && digit <= '9' ? digit - '0'
                : (digit | 32) >= 'a' && (digit | 32) <= 'f' ? (digit | 32) - 'a' + 10 : -1;
            if (found < 0) {
                return false;
            }
            value = value * 16 + found;
        }
        fs_put_char(&buffer, (char)value);
        at += 2;
        from = at + 1;
    }
    fs_put(&buffer, text.at + from, text.length - from);
    *part = fs_part_text(fs_keep(arena, fs_written(&buffer)));
    return true;
}

static bool read_part(fs_arena *arena, fs_kind kind, fs_text text, fs_part *part) {
    fs_date day;
    fs_time time;
    switch (kind) {
    case FS_STRING:
        return read_text(arena, text, part);
    case FS_BOOL:
        *part = fs_part_bool(text.length == 1 && *text.at == '1');
        return text.length == 1 && (*text.at == '0' || *text.at == '1');
    case FS_DATE:
        if (!fs_read_date(text, &day)) {
            return false;
        }
        *part = fs_part_date(day);
        return true;
    case FS_TIME:
        if (text.length != 30 || text.at[10] != 'T' || text.at[29] != 'Z' || !fs_read_time(text, &time)) {
            return false;
        }
        *part = fs_part_time(time);
        return true;
    default:
        return read_integer(kind, text, part);
    }
}

bool fs_read_key(fs_arena *arena, const fs_kind *kinds, fs_text text, fs_key *key) {
    const char *at = text.at, *end = text.at + text.length;
    *key = (fs_key){.count = part_count(kinds)};
    for (size_t place = 0; place < key->count; place++) {
        if (at == end || *at != '/') {
            return fs_mismatch("expected %d parts in the key", (int)key->count);
        }
        const char *from = ++at;
        while (at < end && *at != '/') {
            at++;
        }
        fs_text part = {from, (size_t)(at - from)};
        if (!read_part(arena, kinds[place], part, &key->parts[place])) {
            return fs_mismatch("part %d of the key has another form", (int)place + 1);
        }
    }
    return at == end || fs_mismatch("expected %d parts in the key", (int)key->count);
}

/* ---- Tables. ---- */

struct fs_slot {
    /* In its bucket, and among the changed. */
    fs_slot *next, *next_changed;
    uint32_t hash;
    fs_text key;
    bool found, is_changed;
    /* Index in the batch of the event that changed it last, and of the last that may hold it. */
    int changed, held;
    _Alignas(16) char value[];
};

static uint32_t hash_of(fs_text text) {
    uint32_t hash = 2166136261u;
    for (size_t place = 0; place < text.length; place++) {
        hash = (hash ^ (unsigned char)text.at[place]) * 16777619u;
    }
    return hash;
}

/* The text of a key with the name of its table; empty if the key is wrong. */
static fs_text key_text(fs_table *table, const fs_key *key) {
    fs_buffer buffer = {.arena = &fs_instance.batch};
    fs_put_string(&buffer, table->name);
    bool sound = fs_write_key(&buffer, table->key, *key);
    if (sound && buffer.length > KEY_BYTES_MAX) {
        /* Refused here with a message that names the limit; the host would end the call. */
        sound = fs_mismatch("a key has %d bytes; at most %d are allowed", (int)buffer.length, KEY_BYTES_MAX);
    }
    if (!sound) {
        fs_within("table %s: ", table->name);
        return (fs_text){0};
    }
    return fs_written(&buffer);
}

static void grow(fs_table *table) {
    size_t capacity = table->capacity == 0 ? 64 : table->capacity * 2;
    fs_slot **slots = fs_allocate(&fs_instance.kept, capacity * sizeof(fs_slot *));
    memset(slots, 0, capacity * sizeof(fs_slot *));
    for (size_t bucket = 0; bucket < table->capacity; bucket++) {
        for (fs_slot *slot = table->slots[bucket], *next; slot != NULL; slot = next) {
            next = slot->next;
            slot->next = slots[slot->hash & (capacity - 1)];
            slots[slot->hash & (capacity - 1)] = slot;
        }
    }
    table->slots = slots;
    table->capacity = capacity;
}

/* The slot of a key as in the state; *is_new says that it was made. */
static fs_slot *slot_of_text(fs_table *table, fs_text text, bool *is_new) {
    uint32_t hash = hash_of(text);
    *is_new = false;
    if (table->capacity > 0) {
        fs_slot *slot = table->slots[hash & (table->capacity - 1)];
        for (; slot != NULL; slot = slot->next) {
            if (slot->hash == hash && fs_text_equal(slot->key, text)) {
                return slot;
            }
        }
    }
    if (table->count == table->capacity) {
        grow(table);
    }
    fs_slot *slot = fs_allocate(&fs_instance.kept, sizeof(fs_slot) + table->value->size);
    *slot = (fs_slot){.hash = hash, .changed = FS_NO_EVENT, .held = FS_NO_EVENT - 1};
    slot->key = fs_keep(&fs_instance.kept, text);
    memset(slot->value, 0, table->value->size);
    slot->next = table->slots[hash & (table->capacity - 1)];
    table->slots[hash & (table->capacity - 1)] = slot;
    table->count++;
    fs_instance.entries++;
    *is_new = true;
    return slot;
}

static bool decode_value(fs_arena *arena, fs_table *table, fs_text key, fs_text stored, void *into) {
    if (fs_decode(arena, stored, table->value, into)) {
        return true;
    }
    fs_within("the value of %.*s does not match its type; raise the state version if values change "
              "their format: ", (int)key.length, key.at);
    return false;
}

/* The slot of a key; with its value, if it is to be loaded. NULL if the key is wrong. */
static fs_slot *slot_of(fs_table *table, const fs_key *key, bool load) {
    fs_text text = key_text(table, key), stored;
    if (text.at == NULL) {
        return NULL;
    }
    bool is_new;
    fs_slot *slot = slot_of_text(table, text, &is_new);
    if (is_new && load && fs_instance.backend->get(slot->key, &stored)) {
        slot->found = true;
        if (!decode_value(&fs_instance.kept, table, slot->key, stored, slot->value)) {
            return NULL;
        }
    }
    return slot;
}

static fs_slot *mark(fs_table *table, fs_slot *slot) {
    if (slot == NULL) {
        return NULL;
    }
    if (!fs_instance.writable) {
        fs_mismatch("a query cannot change table %s", table->name);
        return NULL;
    }
    if (!slot->is_changed) {
        slot->is_changed = true;
        slot->next_changed = table->changed;
        table->changed = slot;
    }
    /* The event that changed it last is blamed if the value cannot be encoded. */
    slot->changed = fs_instance.event;
    return slot;
}

const void *fs_get(fs_table *table, fs_key key) {
    fs_slot *slot = slot_of(table, &key, true);
    return slot == NULL || !slot->found ? NULL : slot->value;
}

void *fs_edit(fs_table *table, fs_key key) {
    fs_slot *slot = mark(table, slot_of(table, &key, true));
    if (slot == NULL) {
        /* What is changed is lost, as the event is rejected. */
        void *nothing = fs_allocate(&fs_instance.batch, table->value->size);
        memset(nothing, 0, table->value->size);
        return nothing;
    }
    if (!slot->found) {
        memset(slot->value, 0, table->value->size);
        slot->found = true;
    }
    slot->held = fs_instance.event;
    return slot->value;
}

/* Copies the texts of a value into the batch, where they live until it is written. */
static void copy_texts(const fs_type *type, char *value) {
    if (type->kind == FS_STRING) {
        fs_text *text = (fs_text *)(void *)value;
        *text = fs_copy(*text);
    }
    for (size_t place = 0; place < type->count; place++) {
        copy_texts(type->fields[place].type, value + type->fields[place].offset);
    }
}

void fs_set(fs_table *table, fs_key key, const void *value) {
    fs_slot *slot = mark(table, slot_of(table, &key, false));
    if (slot != NULL) {
        if (table->value->size > 0) {
            memmove(slot->value, value, table->value->size);
        }
        copy_texts(table->value, slot->value);
        slot->found = true;
    }
}

void fs_delete(fs_table *table, fs_key key) {
    fs_slot *slot = mark(table, slot_of(table, &key, false));
    if (slot != NULL) {
        slot->found = false;
    }
}

/* Adds the changes of a table to what the host is to write. */
static bool collect(fs_table *table, fs_entry *writes, size_t *count) {
    bool texts = fs_has_texts(table->value);
    fs_slot *kept = NULL;
    for (fs_slot *slot = table->changed, *next; slot != NULL; slot = next) {
        next = slot->next_changed;
        fs_buffer buffer = {.arena = &fs_instance.batch};
        if (slot->found && !fs_encode(&buffer, table->value, slot->value)) {
            fs_within("the value of %.*s cannot be stored: ", (int)slot->key.length, slot->key.at);
            fs_instance.blamed = slot->changed;
            return false;
        }
        writes[(*count)++] = (fs_entry){slot->key, fs_written(&buffer), !slot->found};
        /* The event that is being applied may hold the value, and change it again. */
        if (slot->held == fs_instance.event) {
            slot->next_changed = kept;
            kept = slot;
            continue;
        }
        slot->is_changed = false;
        if (texts && slot->found) {
            /* Its texts are of the batch, and it outlives that. */
            memset(slot->value, 0, table->value->size);
            fs_decode(&fs_instance.kept, fs_written(&buffer), table->value, slot->value);
        }
    }
    table->changed = kept;
    return true;
}

bool fs_flush(void) {
    fs_table *const *tables = foldstream_projection.tables;
    size_t changed = 0, count = 0;
    for (size_t place = 0; tables != NULL && tables[place] != NULL; place++) {
        for (fs_slot *slot = tables[place]->changed; slot != NULL; slot = slot->next_changed) {
            changed++;
        }
    }
    if (changed == 0) {
        return true;
    }
    fs_entry *writes = fs_allocate(&fs_instance.batch, changed * sizeof(fs_entry));
    for (size_t place = 0; tables[place] != NULL; place++) {
        if (!collect(tables[place], writes, &count)) {
            return false;
        }
    }
    fs_instance.backend->put_many(writes, count);
    return true;
}

void fs_reset(void) {
    fs_table *const *tables = foldstream_projection.tables;
    for (size_t place = 0; tables != NULL && tables[place] != NULL; place++) {
        fs_table *table = tables[place];
        table->slots = NULL;
        table->capacity = table->count = 0;
        table->changed = NULL;
    }
    fs_release(&fs_instance.kept);
    fs_instance.entries = 0;
}

/* ---- Scans. ---- */

static fs_text larger(fs_text one, fs_text other) {
    size_t length = one.length < other.length ? one.length : other.length;
    int order = memcmp(one.at, other.at, length);
    return order > 0 || (order == 0 && one.length > other.length) ? one : other;
}

static bool is_before(fs_text one, fs_text other) {
    return !fs_text_equal(one, other) && larger(one, other).at == other.at;
}

static fs_text with(fs_text text, char last) {
    fs_buffer buffer = {.arena = &fs_instance.batch};
    fs_put(&buffer, text.at, text.length);
    fs_put_char(&buffer, last);
    return fs_written(&buffer);
}

/* Narrows a scan at one side to a key; at its end, if it goes through it. */
static void narrow(fs_scan *scan, const fs_key *key, bool start, bool through) {
    if (key == NULL) {
        return;
    }
    fs_text text = key_text(scan->table, key);
    if (text.at == NULL) {
        return;
    }
    /* The text behind a key is the key with the lowest character appended. */
    text = through ? with(text, 0) : text;
    if (start) {
        scan->start = larger(scan->start, text);
    } else if (is_before(text, scan->end)) {
        scan->end = text;
    }
}

fs_scan fs_scan_begin(fs_table *table, fs_range range) {
    fs_scan scan = {.table = table, .backwards = range.backwards, .more = true,
        .limited = range.limit > 0, .left = range.limit};
    fs_buffer stem = {.arena = &fs_instance.batch};
    fs_put_string(&stem, table->name);
    if (range.under.count > 0 && range.under.count >= part_count(table->key)) {
        fs_mismatch("table %s: `under` takes fewer parts than a key has", table->name);
    } else if (!write_parts(&stem, table->key, range.under)) {
        fs_within("table %s: ", table->name);
    }
    scan.start = with(fs_written(&stem), '/');
    /* Zero follows the slash. */
    scan.end = with(fs_written(&stem), '0');
    narrow(&scan, range.from, true, false);
    narrow(&scan, range.before, false, false);
    narrow(&scan, range.through, false, true);
    if (range.after != NULL) {
        scan.after = key_text(table, range.after);
    }
    return scan;
}

/* Goes to the next entry as it is stored. */
static bool next_entry(fs_scan *scan, fs_entry *entry) {
    if (fs_instance.failure != FS_OK || (scan->limited && scan->left == 0)) {
        return false;
    }
    if (scan->at == scan->page_count) {
        /* The host scans what it has, so the writes of this batch have to be there first. */
        if (!scan->more || !is_before(scan->start, scan->end) || !fs_flush()) {
            return false;
        }
        size_t wanted = scan->limited && scan->left < PAGE_ENTRIES_MAX ? scan->left : PAGE_ENTRIES_MAX;
        scan->page = fs_instance.backend->scan(scan->start, scan->end, scan->after, scan->backwards,
            wanted, &scan->page_count, &scan->more);
        scan->at = 0;
        if (scan->page_count == 0) {
            scan->more = false;
            return false;
        }
        scan->after = scan->page[scan->page_count - 1].key;
    }
    *entry = scan->page[scan->at++];
    scan->left -= scan->limited;
    return true;
}

static bool read_entry_key(fs_table *table, fs_entry entry, fs_key *key) {
    size_t name = strlen(table->name);
    fs_text text = {entry.key.at + name, entry.key.length - name};
    if (fs_read_key(&fs_instance.batch, table->key, text, key)) {
        return true;
    }
    fs_within("key %.*s: ", (int)entry.key.length, entry.key.at);
    return false;
}

bool fs_next(fs_scan *scan) {
    fs_entry entry;
    if (!next_entry(scan, &entry) || !read_entry_key(scan->table, entry, &scan->key)) {
        return false;
    }
    void *value = fs_allocate(&fs_instance.batch, scan->table->value->size);
    memset(value, 0, scan->table->value->size);
    scan->value = value;
    return decode_value(&fs_instance.batch, scan->table, entry.key, entry.value, value);
}

size_t fs_delete_range(fs_table *table, fs_range range) {
    fs_scan scan = fs_scan_begin(table, range);
    fs_entry entry;
    fs_key key;
    size_t count = 0;
    for (; next_entry(&scan, &entry) && read_entry_key(table, entry, &key); count++) {
        fs_delete(table, key);
    }
    return count;
}

/* ---- Room. ---- */

bool fs_make_room(void) {
    /* Never within an event, which may hold a value that it is about to change. */
    if (fs_instance.entries <= ENTRIES_MAX && fs_instance.kept.total <= KEPT_BYTES_MAX) {
        return true;
    }
    if (!fs_flush()) {
        return false;
    }
    fs_reset();
    return true;
}
