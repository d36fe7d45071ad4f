/** Keys have the texts that every SDK writes: `guest-sdk/conformance/keys.json`. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Mismatch } from "../src/errors";
import type { Manifest } from "../src/manifest";
import { Projection } from "../src/projection";
import { isBefore } from "../src/tables";
import { Harness, event } from "../src/testing";
import * as types from "../src/types";

interface Vectors {
  written: { types: string[]; key: unknown[]; text: string }[];
  refused: { types: string[]; text: string }[];
}

const vectors = JSON.parse(readFileSync(new URL("../../conformance/keys.json", import.meta.url), "utf8")) as Vectors;
const typeOf = (name: string): types.Type<any> => (name === "time" ? types.timestamp : (types as any)[name]);

/** A projection that stores one key, and reads all keys back. */
function table(names: string[], key: unknown[]) {
  return class Keys extends Projection {
    static override manifest: Manifest = { name: "keys", subjects: ["key"] };
    keys = this.table("t", names.map(typeOf), types.nothing);
    apply() {
      this.keys.set(key as any, null);
    }
    override queries = {};
    read() {
      return [...this.keys.scan()].map(([key]) => key);
    }
  };
}

for (const { types: names, key, text } of vectors.written) {
  test(`a key is written as ${JSON.stringify(text)}`, () => {
    const harness = new Harness(table(names, key)).given(event("key"));
    assert.deepEqual(Object.keys(harness.entries()), [`t${text}`]);
    const parts = text.slice(1).split("/");
    const read = parts.map((part, place) => typeOf(names[place]!).part!.read(part));
    assert.deepEqual(read, key.map((part, place) => typeOf(names[place]!).check(part)));
  });
}

for (const { types: names, text } of vectors.refused) {
  test(`${JSON.stringify(text)} is no key of ${names.join(", ")}`, () => {
    const parts = text.slice(1).split("/");
    const read = () => {
      if (!text.startsWith("/") || parts.length !== names.length) throw new Mismatch("another number of parts");
      parts.forEach((part, place) => typeOf(names[place]!).part!.read(part));
    };
    assert.throws(read, Mismatch);
  });
}

test("keys of another type are refused", () => {
  const wrong: [string, unknown][] = [
    ["text", 1],
    ["text", "\ud800"],
    ["u8", 256],
    ["u8", -1],
    ["u8", 1.5],
    ["u64", 2 ** 53],
    ["bool", 1],
    ["date", "2026-02-29"],
  ];
  for (const [name, key] of wrong) {
    assert.throws(() => new Harness(table([name], [key])).given(event("key")), Mismatch, `${name} ${String(key)}`);
  }
});

test("texts are compared by code points", () => {
  const texts = ["", "A", "a", "aa", "\ue000", "\uffff", "\u{10000}", "\u{10ffff}"];
  for (const [place, one] of texts.entries()) {
    for (const [other, text] of texts.entries()) assert.equal(isBefore(one, text), place < other, `${one} ${text}`);
  }
});
