// The commands that the user can send, and their buttons.

import { h, setAttribute, setDisabled, setText } from "./widgets/dom.js";
import { STATES } from "./status.js";

/**
 * @typedef {import("./rpc.js").Facts} Facts
 * @typedef {import("./rpc.js").Header} Header
 *
 * @typedef {object} Command How a command's button looks.
 * @property {(facts: Facts | null) => string} label
 * @property {(facts: Facts | null) => string} command
 * @property {(facts: Facts | null) => boolean} [pressed]
 * @property {(facts: Facts | null) => boolean} [hidden] Whether the profiler does not know the command.
 * @property {string | ((facts: Facts | null) => string)} title
 */

export const TAKE_SNAPSHOT = "objectspace_snapshot";

/** @type {Command} */
export const MEMORY = {
  label: (facts) => (facts?.object_trace_enabled ? "Stop memory" : "Record memory"),
  command: (facts) => (facts?.object_trace_enabled ? "stop_memory_profile" : "start_memory_profile"),
  pressed: (facts) => Boolean(facts?.object_trace_enabled),
  title: "objects allocated and freed, and the garbage collector",
};

/** @type {Command} */
export const CPU = {
  label: (facts) => (facts?.cpu_profiling_enabled ? "Stop CPU" : "Record CPU"),
  command: (facts) => (facts?.cpu_profiling_enabled ? "stop_cpu_profiling" : "start_cpu_profiling"),
  pressed: (facts) => Boolean(facts?.cpu_profiling_enabled),
  title: "sample the stacks of all threads",
};

/** @type {Command} */
export const SNAPSHOT = {
  label: () => "Snapshot",
  command: () => TAKE_SNAPSHOT,
  title: (facts) => `all objects in the heap, and what they refer to${mayCrash(facts) ? ". Without patches, this rbkit crashes programs on Ruby 3.1 and newer when it takes a snapshot" : ""}`,
};

/** @type {Command[]} */
export const CLOCKS = [
  { label: () => "Wall clock", command: () => "use_wall_time", pressed: (facts) => facts?.clock_type === "wall", title: (facts) => (isPython(facts) ? "sample all threads by elapsed time, those that wait, too" : "sample by elapsed time") },
  { label: () => "CPU clock", command: () => "use_cpu_time", pressed: (facts) => facts?.clock_type === "cpu", title: (facts) => (isPython(facts) ? "sample each thread by its own CPU clock: threads that compute" : "sample by the CPU time of the process") },
];

const CPU_COMMANDS = new Set(["start_cpu_profiling", "stop_cpu_profiling", "use_wall_time", "use_cpu_time"]);

/** @type {Command} */
export const TRACING = {
  label: (facts) => (facts?.allocation_tracing_enabled ? "Stop tracing" : "Trace allocations"),
  command: (facts) => (facts?.allocation_tracing_enabled ? "stop_allocation_tracing" : "start_allocation_tracing"),
  pressed: (facts) => Boolean(facts?.allocation_tracing_enabled),
  hidden: (facts) => !isPython(facts),
  title: "tracemalloc: snapshots have the file and line where each object was created; creating objects takes 3 to 5 times as long meanwhile",
};

/** @type {Command[]} */
export const MORE = [
  { label: () => "Collect garbage", command: () => "trigger_gc", title: "run the garbage collector" },
  { label: () => "Ask again", command: () => "handshake", title: "ask what is recorded" },
];

/** The buttons of commands: their labels, and whether they can be pressed. */
export class Commands {
  #allowed = new Set(/** @type {string} */ (document.documentElement.dataset.commands).split(" "));
  /** @type {{spec: Command, button: HTMLButtonElement}[]} */
  #buttons = [];
  #onsend;

  /** @param {{onsend: (command: string) => void}} options Called when the user presses a button. */
  constructor({ onsend }) {
    this.#onsend = onsend;
  }

  /**
   * Return a button that sends a command; `draw` keeps its label and state.
   *
   * @param {Command} spec
   * @param {string | null} kind
   * @returns {HTMLButtonElement}
   */
  button(spec, kind = null) {
    const button = h("button", { type: "button", class: kind, onclick: () => button.getAttribute("aria-disabled") || this.#onsend(button.dataset.command) });
    this.#buttons.push({ spec, button });
    return button;
  }

  /**
   * @param {Header} header
   * @param {[HTMLButtonElement, string][]} procedures Buttons that send a command among other things.
   */
  draw(header, procedures) {
    const { facts } = header;
    for (const { spec, button } of this.#buttons) {
      const command = spec.command(facts);
      button.dataset.command = command;
      setText(button, spec.label(facts));
      const title = typeof spec.title === "string" ? spec.title : spec.title(facts);
      setDisabled(button, this.#obstacle(header, command), `${title} (${command})`);
      if (spec.hidden) button.hidden = spec.hidden(facts);
      if (spec.pressed) setAttribute(button, "aria-pressed", String(spec.pressed(facts)));
    }
    for (const [button, command] of procedures) setDisabled(button, this.#obstacle(header, command));
  }

  /**
   * Return the commands to send for one that the user gave. Ruby's rbkit applies a clock only when profiling starts.
   *
   * @param {string} command
   * @param {Facts | null} facts
   */
  steps(command, facts) {
    const isStarted = command.startsWith("use_") && Boolean(facts?.cpu_profiling_enabled) && !isPython(facts);
    const all = isStarted ? ["stop_cpu_profiling", command, "start_cpu_profiling"] : [command];
    return all.every((each) => this.#allowed.has(each)) ? all : [command];
  }

  /**
   * Return why a command cannot be sent now, null if it can.
   *
   * @param {Header} header
   * @param {string} command
   */
  #obstacle({ state, pending, facts }, command) {
    if (!this.#allowed.has(command)) return "not allowed here: the server is read-only, or its setting `commands` leaves it out";
    if (state === "file") return "this is a file: go back to the live profiler first";
    if (state !== "live") return `not connected: ${STATES[state]}`;
    if (facts?.cpu_profiling_enabled === null && CPU_COMMANDS.has(command)) return "this rbkit cannot profile CPU use, only rbkit with protocol 2.1 or newer";
    if (pending) return "another command is waiting for its reply";
    return null;
  }
}

/**
 * Return whether the profiler is the one for Python processes, which alone knows allocation tracing.
 *
 * @param {Facts | null} facts
 */
function isPython(facts) {
  return typeof facts?.allocation_tracing_enabled === "boolean";
}

/**
 * Return whether a snapshot may crash the process: rbkit 0.1.10, or its tag, which does not send its version.
 *
 * @param {Facts | null} facts
 */
function mayCrash(facts) {
  return facts !== null && ["0.1.10", "(unknown)"].includes(facts.rbkit_server_version);
}
