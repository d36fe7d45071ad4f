/** Finds asynchronous code in a module: a host waits for no promise, so what comes behind an `await`
 * would never run. */

/** What was lost since `beginCall`. */
let lost: TypeError | undefined;

/** Called before the module is. */
export function beginCall(): void {
  lost = undefined;
}

/** Refuses what a method of the module returned if it was a promise, and the call if something was
 * lost meanwhile. */
export function refuseWaiting(method: string, returned: unknown): void {
  if (typeof (returned as { then?: unknown } | null | undefined)?.then === "function") {
    throw new TypeError(`${method} must not be async: nothing here waits for a promise`);
  }
  if (lost !== undefined) throw lost;
}

/** Notes from now on what is lost. The build lowers `async` and `await` to calls of `Promise`. */
export function watchPromises(): void {
  globalThis.queueMicrotask = () => {
    lost ??= new TypeError("a microtask was queued, and nothing here runs it");
  };
  globalThis.Promise = class Promise<T> extends globalThis.Promise<T> {
    constructor(executor: (resolve: (value: T | PromiseLike<T>) => void, reject: (reason: unknown) => void) => void) {
      super((resolve, reject) => {
        const fail = (reason: unknown) => {
          lost ??= new TypeError("asynchronous code failed, and nothing here waits for it", { cause: reason });
          reject(reason);
        };
        try {
          executor(resolve, fail);
        } catch (error) {
          fail(error);
        }
      });
    }

    override then<A = T, B = never>(
      fulfilled?: ((value: T) => A | PromiseLike<A>) | null,
      rejected?: ((reason: any) => B | PromiseLike<B>) | null,
    ): globalThis.Promise<A | B> {
      lost ??= new TypeError("asynchronous code waits for a promise, and what follows would never run");
      return super.then(fulfilled, rejected);
    }
  };
}
