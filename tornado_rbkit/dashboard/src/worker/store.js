// The browser's IndexedDB, in which parts of sessions outlive a reload: by tab, in the order of their numbers.

const DATABASE = "rbkit";
const PARTS = "parts"; // by [tab, number]
const TABS = "tabs"; // when each was last written, in ms

/**
 * @typedef {object} Store What a keeper needs of a database.
 * @property {(tab: string, parts: [number, unknown][], dropped: number[]) => Promise<void>} write
 * @property {(tab: string) => Promise<[number, any][]>} read
 * @property {(before: number) => Promise<void>} removeOlder Removes the tabs that were last written before a time in ms.
 */

/** @returns {Promise<Store>} Rejects if the browser has no database, or refuses it, as in some private windows. */
export async function openStore() {
  const opening = indexedDB.open(DATABASE, 1);
  opening.onupgradeneeded = () => {
    opening.result.createObjectStore(PARTS);
    opening.result.createObjectStore(TABS);
  };
  const database = await result(opening);
  return {
    async write(tab, parts, dropped) {
      const change = database.transaction([PARTS, TABS], "readwrite", { durability: "relaxed" });
      for (const [number, value] of parts) change.objectStore(PARTS).put(value, [tab, number]);
      for (const number of dropped) change.objectStore(PARTS).delete([tab, number]);
      change.objectStore(TABS).put(Date.now(), tab);
      await completed(change);
    },
    async read(tab) {
      const parts = database.transaction(PARTS).objectStore(PARTS);
      const [keys, values] = await Promise.all([result(parts.getAllKeys(ofTab(tab))), result(parts.getAll(ofTab(tab)))]);
      return keys.map((key, i) => [/** @type {[string, number]} */ (key)[1], values[i]]);
    },
    async removeOlder(before) {
      const change = database.transaction([PARTS, TABS], "readwrite");
      const tabs = change.objectStore(TABS);
      const [keys, times] = await Promise.all([result(tabs.getAllKeys()), result(tabs.getAll())]);
      keys.forEach((tab, i) => {
        if (times[i] >= before) return;
        tabs.delete(tab);
        change.objectStore(PARTS).delete(ofTab(tab));
      });
      await completed(change);
    },
  };
}

/** @param {IDBValidKey} tab */
function ofTab(tab) {
  return IDBKeyRange.bound([tab], [tab, []]); // an array is greater than any number
}

/**
 * @template Result
 * @param {IDBRequest<Result>} request
 * @returns {Promise<Result>}
 */
function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/**
 * @param {IDBTransaction} change
 * @returns {Promise<void>}
 */
function completed(change) {
  return new Promise((resolve, reject) => {
    change.oncomplete = () => resolve();
    change.onabort = () => reject(change.error);
  });
}
