"""A consumer as one would write it by hand: the totals of customers in SQLite, from a stream.

Usage: consumer.py PORT STREAM EVENTS DATABASE

It does what the bench's module does: it parses each event, updates the aggregate of its customer, and
commits the aggregates with the position once a second. It speaks the NATS protocol itself
(https://docs.nats.io/reference/reference-protocols/nats-protocol), which costs less than a client library,
and needs nothing but Python.
"""

import json
import socket
import sqlite3
import sys
import time

BATCH = 5_000


class Connection:
    """A connection to a NATS server that delivers the messages of one inbox."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.reader = self.socket.makefile("rb", buffering=1 << 20)
        self.reader.readline()  # INFO
        options = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True}
        self.send(f"CONNECT {json.dumps(options)}\r\nSUB inbox 1\r\n")

    def send(self, text):
        self.socket.sendall(text.encode())

    def publish(self, subject, data):
        self.send(f"PUB {subject} inbox {len(data)}\r\n{data}\r\n")

    def next(self):
        """The next message: its subject, its reply subject, its headers and its data."""
        while True:
            words = self.reader.readline().split()
            if words[0] == b"PING":
                self.send("PONG\r\n")
            elif words[0] == b"MSG":
                reply = words[3] if len(words) == 5 else b""
                data = self.reader.read(int(words[-1]) + 2)[:-2]
                return words[1], reply, b"", data
            elif words[0] == b"HMSG":
                reply = words[3] if len(words) == 6 else b""
                size = int(words[-2])
                whole = self.reader.read(int(words[-1]) + 2)[:-2]
                return words[1], reply, whole[:size], whole[size:]
            elif words[0] == b"-ERR":
                sys.exit(b" ".join(words).decode())


def fold(row, kind, sequence, event):
    """Updates an aggregate: events, orders, items, total, paid, shipped, web orders, last sequence."""
    row[0] += 1
    row[7] = sequence
    if kind == b"placed":
        row[1] += 1
        row[2] += event["items"]
        row[3] += event["cents"]
        row[6] += event["channel"] == "web"
    elif kind == b"paid":
        row[4] += event["cents"]
    elif kind == b"shipped":
        row[5] += 1
    elif kind in (b"cancelled", b"returned"):
        row[1] = max(0, row[1] - (kind == b"cancelled"))
        row[2] = max(0, row[2] - event["items"])
        row[3] = max(0, row[3] - event["cents"])


def commit(database, changed, sequence):
    """Makes the aggregates and the position durable in one transaction."""
    database.execute("BEGIN")
    rows = ((name, json.dumps(row)) for name, row in changed.items())
    database.executemany("INSERT OR REPLACE INTO customers VALUES (?, ?)", rows)
    database.execute("INSERT OR REPLACE INTO position VALUES (1, ?)", (sequence,))
    database.execute("COMMIT")


def main():
    port, stream, events, file = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    database = sqlite3.connect(file, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE customers (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
    database.execute("CREATE TABLE position (id INTEGER PRIMARY KEY, sequence INTEGER)")
    connection = Connection(port)
    config = {"ack_policy": "none", "deliver_policy": "all", "max_waiting": 8, "name": "python"}
    request = json.dumps({"stream_name": stream, "config": config})
    connection.publish(f"$JS.API.CONSUMER.CREATE.{stream}.python", request)
    answer = json.loads(connection.next()[3])
    if "error" in answer:
        sys.exit(str(answer))
    subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.python"

    def ask():
        connection.publish(subject, json.dumps({"batch": BATCH, "expires": 30_000_000_000}))

    ask()
    ask()
    changed, read, committed = {}, 0, time.monotonic()
    while read < events:
        subject_of, reply, headers, data = connection.next()
        if headers.startswith(b"NATS/1.0 "):
            continue  # A status: the request is over.
        sequence = int(reply.split(b".")[5])
        event = json.loads(data)
        customer = event["customer"]
        row = changed.get(customer)
        if row is None:
            found = database.execute("SELECT value FROM customers WHERE name = ?", (customer,)).fetchone()
            row = changed[customer] = json.loads(found[0]) if found else [0] * 8
        fold(row, subject_of.rpartition(b".")[2], sequence, event)
        read += 1
        if read % BATCH == 0:
            ask()
            if time.monotonic() - committed >= 1:
                commit(database, changed, sequence)
                changed, committed = {}, time.monotonic()
    commit(database, changed, sequence)
    sums = [0] * 8
    for (value,) in database.execute("SELECT value FROM customers"):
        sums = [sum + part for sum, part in zip(sums, json.loads(value))]
    print(json.dumps(sums[:7]))


if __name__ == "__main__":
    main()
