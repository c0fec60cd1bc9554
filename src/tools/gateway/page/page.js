// The page of the gateway: shows the pipelines of a root, live.
//
// Everything that the server tells is a payload of another program in the end. It becomes text nodes, and
// attributes from fixed lists: never markup, never an address. One stream of Server-Sent Events feeds
// `network`; events mark what has changed, and one animation frame paints that and nothing more.

// ---------------------------------------------------------------- limits

/** Maximum number of messages that are kept and shown. */
const MAX_MESSAGES = 500;
/** Maximum number of refused requests that are kept and shown. */
const MAX_REFUSED = 100;
/** Maximum number of runs and statuses that are asked for. */
const MAX_RUNS = 100;
/** Maximum number of characters of output that are shown: 1 MiB. */
const MAX_OUTPUT = 1024 * 1024;
/** Maximum number of characters of one event of a stream. */
const MAX_EVENT = 32 * 1024 * 1024;
/** Maximum number of elements of a drawing, and of levels in it. */
const MAX_DRAWING = 50_000;
const MAX_DEPTH = 12;
/** Milliseconds without a byte after which a stream is dead; the server sends a comment every 15 s. */
const SILENCE = 45_000;
/** Milliseconds until an answer must have begun. */
const ANSWER = 20_000;
/** Delays before a stream is opened again, milliseconds: the first doubles up to the last. */
const RETRY_FIRST = 500;
const RETRY_LAST = 30_000;
/** Milliseconds in which changes of a pipeline are gathered before its runs are fetched again. */
const GATHER = 250;
/** Milliseconds between two texts for screen readers. */
const SAY_EVERY = 2_000;
/** Milliseconds for which a run stays lit at least: many take less than a frame. */
const GLOW = 700;
/** Maximum number of changes in one text for screen readers. */
const SAY_MOST = 3;

const SVG = 'http://www.w3.org/2000/svg';

// ---------------------------------------------------------------- elements and text

/** Returns the element of this id. */
const $ = (id) => document.getElementById(id);

/** Makes an element; `attributes` come from this file alone, `children` are nodes and texts. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Makes an element of SVG. */
function shape(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Sets the text of a node if it is another one. */
function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Sets the classes of a node if they are others. */
function dress(node, classes) {
  if (node.getAttribute('class') !== classes) node.setAttribute('class', classes);
}

// Characters that would be unseen, or change the order in which others are read.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

/** Returns `value` as text that shows every character of it. */
function visible(value) {
  if (value === null || value === undefined) return '';
  const text = typeof value === 'string' ? value : JSON.stringify(value);
  return text.replace(UNSEEN, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
}

/** Returns `value` in one line. */
function line(value, most = 400) {
  const text = visible(value).replace(/\s+/g, ' ');
  return text.length > most ? `${text.slice(0, most)}…` : text;
}

/** Returns the output of a command without colours and returns of the carriage. */
function plain(text) {
  return visible(text.replace(/\x1b\[[0-9;?]*[A-Za-z]/g, '').replace(/\r+\n?/g, '\n'));
}

/** Returns `value` if it is an array, otherwise an empty one. */
const array = (value) => (Array.isArray(value) ? value : []);
/** Returns whether `value` is a number that can be shown. */
const isNumber = (value) => typeof value === 'number' && Number.isFinite(value);

/** Elements by key, of each parent that `sync` fills. */
const kept = new WeakMap();

/** Makes the children of `parent` those of `items`, and keeps the elements of keys that stay. */
function sync(parent, items, key, make, update) {
  const old = kept.get(parent) ?? new Map();
  const rows = new Map();
  let at = parent.firstElementChild;
  for (const item of items) {
    const name = key(item);
    if (rows.has(name)) continue;
    const row = old.get(name) ?? make(item);
    rows.set(name, row);
    update(row, item);
    if (row === at) at = at.nextElementSibling;
    else parent.insertBefore(row, at);
  }
  for (const [name, row] of old) if (!rows.has(name)) row.remove();
  kept.set(parent, rows);
}

// ---------------------------------------------------------------- times

/** Seconds by which the clock of the server is ahead of ours. */
let skew = 0;

/** Learns the time of the server from an answer; its header has whole seconds. */
function learnTime(response) {
  const date = Date.parse(response.headers.get('date') ?? '');
  if (Number.isNaN(date)) return;
  const ahead = (date - Date.now()) / 1000;
  skew = Math.abs(ahead) > 2 ? ahead : 0;
}

/** Returns the time of the server, seconds since 1970. */
const now = () => Date.now() / 1000 + skew;

const two = (n) => String(n).padStart(2, '0');

/** Returns a time of the day, with the date if it is not today's. */
function clock(seconds) {
  if (!isNumber(seconds)) return '';
  const date = new Date(seconds * 1000);
  if (Number.isNaN(date.getTime())) return '';
  const time = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  if (date.toDateString() === new Date().toDateString()) return time;
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${time}`;
}

const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];

/** Returns a time of the day, or the day if it is not today. */
function brief(seconds) {
  const text = clock(seconds);
  if (text.length <= 8) return text;
  const date = new Date(seconds * 1000);
  const day = `${date.getDate()} ${MONTHS[date.getMonth()]}`;
  return date.getFullYear() === new Date().getFullYear() ? `${day} ${text.slice(-8, -3)}` : `${day} ${date.getFullYear()}`;
}

/** Returns a span of seconds as people say it. */
function span(seconds) {
  if (!isNumber(seconds)) return '';
  const s = Math.max(0, seconds);
  if (s < 0.9995) return `${Math.round(s * 1000)} ms`;
  if (s < 9.95) return `${s.toFixed(1)} s`;
  if (s < 59.5) return `${Math.round(s)} s`;
  const whole = Math.round(s);
  if (whole < 3600) return `${Math.floor(whole / 60)} m ${whole % 60} s`;
  if (whole < 86_400) return `${Math.floor(whole / 3600)} h ${Math.floor(whole / 60) % 60} m`;
  return `${Math.floor(whole / 86_400)} d ${Math.floor(whole / 3600) % 24} h`;
}

/** Returns a span in whole seconds, for what counts up. */
const counted = (seconds) => (seconds < 59.5 ? `${Math.floor(Math.max(0, seconds))} s` : span(seconds));

/** Returns how long ago a time was. */
function ago(seconds) {
  if (!isNumber(seconds)) return '';
  const s = now() - seconds;
  return s < 2 ? 'just now' : `${counted(s)} ago`;
}

/** Returns the seconds of a `time_elapsed`: `[D days, ]H:MM:SS.f`. */
function elapsed(text) {
  const parts = /^(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)$/.exec(text ?? '');
  if (!parts) return null;
  return Number(parts[1] ?? 0) * 86_400 + Number(parts[2]) * 3600 + Number(parts[3]) * 60 + Number(parts[4]);
}

// ---------------------------------------------------------------- what is known

const network = {
  root: '',
  control: false,
  truncated: false,
  broker: { state: 'unknown', since: null },
  /** Pipelines by name. */
  pipelines: new Map(),
  /** Beacons by topic, nodes by name. */
  beacons: new Map(),
  nodes: new Map(),
  /** Refused requests, newest first. */
  refused: [],
  edges: [],
};

/** Connection to the gateway: `state` is opening, open or away. */
const gateway = { state: 'opening', since: now(), next: null, cause: '' };

/** Returns whether states are only the last known ones, because the gateway or its broker is away. */
const areOld = () => gateway.state === 'away' || network.broker.state === 'away';

/** Returns a state in words. */
const stateWords = (state) => (areOld() ? `last known: ${state}` : state);

/** Parts that the next frame paints. */
const changed = { names: new Set(), all: false, parts: new Set(), frame: false };

/** Has the next frame paint a part of the page. */
function paint(part) {
  changed.parts.add(part);
  if (changed.frame) return;
  changed.frame = true;
  requestAnimationFrame(() => {
    changed.frame = false;
    const parts = new Set(changed.parts);
    changed.parts.clear();
    for (const each of parts) PAINTERS[each]();
  });
}

/** Has the next frame paint a pipeline. */
function touch(who) {
  changed.names.add(who);
  paint('list');
}

// ---------------------------------------------------------------- texts for screen readers

const speech = { waiting: [], more: 0, timer: null };

/** Has screen readers say a change; many at once are cut. */
function say(text) {
  if (speech.waiting.length < SAY_MOST) speech.waiting.push(text);
  else speech.more += 1;
  speech.timer ??= setTimeout(() => {
    const more = speech.more ? [`and ${speech.more} more changes`] : [];
    put($('said'), [...speech.waiting, ...more].join('. '));
    speech.waiting = [];
    speech.more = 0;
    speech.timer = null;
  }, SAY_EVERY);
}

// ---------------------------------------------------------------- requests

const TOKEN = 'tael-token';

/** An answer that is an error. */
class Refusal extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

/** Returns the token of this tab, or an empty text. */
function token() {
  try {
    return sessionStorage.getItem(TOKEN) ?? '';
  } catch {
    return '';
  }
}

/** Sends a request, and returns the answer if it is a good one. */
async function ask(path, { method = 'GET', accept = 'application/json', body, signal } = {}) {
  const headers = { accept };
  if (token()) headers.authorization = `Bearer ${token()}`;
  if (body !== undefined) headers['content-type'] = 'application/json';
  const limit = new AbortController();
  const timer = setTimeout(() => limit.abort(new Error(`no answer within ${ANSWER / 1000} s`)), ANSWER);
  const signals = signal ? AbortSignal.any([signal, limit.signal]) : limit.signal;
  let response;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal: signals, cache: 'no-store', credentials: 'omit', redirect: 'error' });
  } finally {
    clearTimeout(timer);
  }
  learnTime(response);
  if (response.ok) return response;
  const refusal = await refused(response);
  if (refusal.status === 401) needToken();
  throw refusal;
}

/** Returns the error that an answer tells. */
async function refused(response) {
  let text = `the gateway answers ${response.status}`;
  try {
    const { error } = await response.json();
    if (typeof error === 'string') text = line(error);
  } catch {
    // The status says enough.
  }
  const refusal = new Refusal(response.status, text);
  refusal.after = Number(response.headers.get('retry-after')) || null;
  return refusal;
}

/** Yields the events of a `text/event-stream`: `{event, data, id}`. */
async function* events(response, heard = () => {}) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  let event = '';
  let data = [];
  let id = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      heard();
      rest += value;
      if (rest.length > MAX_EVENT) throw new Error('an event is too long');
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const each of lines) {
        if (each === '') {
          if (data.length) yield { event: event || 'message', data: data.join('\n'), id };
          event = '';
          data = [];
          continue;
        }
        const colon = each.indexOf(':');
        const name = colon < 0 ? each : each.slice(0, colon);
        const text = colon < 0 ? '' : each.slice(colon + 1).replace(/^ /, '');
        if (name === 'event') event = text;
        else if (name === 'data') data.push(text);
        else if (name === 'id') id = text;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Returns the delay before attempt `n`, milliseconds, so that many pages do not come at once. */
function delay(n) {
  return Math.min(RETRY_LAST, RETRY_FIRST * 2 ** Math.min(n, 16)) * (0.5 + Math.random());
}

// ---------------------------------------------------------------- the stream

let wake = null;

/** Waits, until `wake` is called at the latest. */
function pause(milliseconds) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    wake = () => {
      clearTimeout(timer);
      resolve();
    };
  });
}

/** Reads the stream of the gateway, for ever. */
async function follow() {
  for (let attempt = 0; ; attempt += 1) {
    const abort = new AbortController();
    let watchdog = null;
    const heard = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => abort.abort(new Error('the gateway is silent')), SILENCE);
    };
    let after = null;
    try {
      const response = await ask('api/stream', { accept: 'text/event-stream', signal: abort.signal });
      heard();
      for await (const { event, data } of events(response, heard)) {
        take(event, data);
        if (event === 'network') {
          attempt = 0;
          reached();
        }
      }
      unreachable('the stream has ended');
    } catch (error) {
      if (error.status === 401) {
        unreachable('it asks for a token', true);
        await new Promise((resolve) => { wake = resolve; });
        attempt = -1;
        continue;
      }
      after = error.after ?? null;
      unreachable(error instanceof Refusal || abort.signal.aborted ? error.message : 'no connection');
    } finally {
      clearTimeout(watchdog);
      abort.abort();
    }
    const wait = Math.max(delay(attempt), (after ?? 0) * 1000);
    gateway.next = now() + wait / 1000;
    paint('links');
    await pause(wait);
    gateway.next = null;
  }
}

function reached() {
  if (gateway.state === 'open') return;
  if (gateway.state === 'away') say('The gateway answers again');
  gateway.state = 'open';
  gateway.since = now();
  paint('links');
  if (route.who) refresh();
}

function unreachable(cause, wantsToken = false) {
  gateway.cause = cause;
  if (gateway.state !== 'away') {
    gateway.since = now();
    if (!wantsToken) say('The gateway cannot be reached');
  }
  gateway.state = 'away';
  gateway.wantsToken = wantsToken;
  paint('links');
}

/** Takes an event of the stream. */
function take(event, data) {
  const handler = HANDLERS[event];
  if (!handler) return;
  let value;
  try {
    value = JSON.parse(data);
  } catch {
    return;
  }
  if (value !== null && typeof value === 'object') handler(value);
}

const HANDLERS = {
  network: takeNetwork,
  pipeline(value) {
    takePipeline(value);
  },
  gone({ who }) {
    if (!network.pipelines.delete(who)) return;
    touch(who);
    if (who === route.who) paint('pipeline');
    say(`${line(who, 60)} is gone`);
    redraw();
  },
  broker(value) {
    takeBroker(value);
  },
  beacon(value) {
    if (typeof value.topic !== 'string') return;
    if (value.state === 'gone') network.beacons.delete(value.topic);
    else network.beacons.set(value.topic, value);
    paint('nodes');
  },
  node(value) {
    if (typeof value.node !== 'string') return;
    if (value.state === 'gone') network.nodes.delete(value.node);
    else network.nodes.set(value.node, { ...value, heard: now() });
    paint('nodes');
  },
  refused(value) {
    takeRefused(value);
    paint('refused');
  },
  edges() {
    drawing.known = '';
    redraw();
  },
  message: takeMessage,
  dropped({ n }) {
    log.dropped += isNumber(n) ? n : 0;
    paint('messages');
    // What was left out may have been more than messages.
    refetch();
  },
};

/** Takes all that the gateway knows. */
function takeNetwork(value) {
  network.root = line(value.root, 100);
  network.control = value.control === true;
  network.truncated = value.truncated === true;
  network.version = line(value.version, 40);
  network.host = line(value.host, 100);
  takeBroker(value.broker ?? {});
  const names = new Set();
  for (const pipeline of array(value.pipelines)) {
    if (typeof pipeline?.who !== 'string') continue;
    names.add(pipeline.who);
    takePipeline(pipeline, true);
  }
  for (const who of [...network.pipelines.keys()]) {
    if (names.has(who)) continue;
    network.pipelines.delete(who);
    touch(who);
  }
  network.beacons = new Map(array(value.beacons).filter((b) => typeof b?.topic === 'string').map((b) => [b.topic, b]));
  network.nodes = new Map(array(value.nodes).filter((n) => typeof n?.node === 'string').map((n) => [n.node, { ...n, heard: now() }]));
  network.refused = [];
  for (const each of array(value.refused)) takeRefused(each);
  takeEdges(value.edges);
  for (const part of ['links', 'list', 'nodes', 'refused', 'pipeline', 'messages']) paint(part);
  redraw();
}

function takePipeline(value, quiet = false) {
  const { who } = value;
  if (typeof who !== 'string') return;
  const old = network.pipelines.get(who);
  const pipeline = { ...value, running: array(value.running).filter((run) => run && typeof run === 'object') };
  network.pipelines.set(who, pipeline);
  touch(who);
  if (!old && !quiet) redraw();
  if (old) {
    tell(old, pipeline);
    glow(old, pipeline);
  }
  if (who === route.who) {
    paint('pipeline');
    if (!quiet) refreshSoon();
  }
}

/** What has just run, by name of the pipeline: its runs, and until when they stay lit. */
const glows = new Map();

/** Keeps a pipeline lit that has run just now. */
function glow(old, pipeline) {
  const { who, last } = pipeline;
  const ended = last && (last.ts !== old.last?.ts || last.time_elapsed !== old.last?.time_elapsed) ? [last] : [];
  const before = glows.get(who);
  const heard = before && performance.now() < before.end ? before.runs.slice(0, 4) : [];
  const runs = [...heard, ...pipeline.running, ...old.running, ...ended];
  if (runs.length > heard.length) glows.set(who, { runs, end: performance.now() + GLOW });
  // What runs stays lit in any case.
  if (runs.length && !pipeline.running.length) setTimeout(() => touch(who), GLOW + 20);
}

/** Lights a pipeline whose status says why a run was started; the run itself may have ended by then. */
function glowFor({ topic, payload, retained }) {
  const levels = topic.split('/');
  const who = levels.at(-2);
  if (retained === true || levels.at(-1) !== 'status' || levels.at(-3) !== 'pipelines' || !network.pipelines.has(who)) return;
  try {
    const { status, reason } = JSON.parse(payload);
    if (status !== 'started' || typeof reason !== 'string') return;
    glows.set(who, { runs: [{ reason }], end: performance.now() + GLOW });
    touch(who);
    setTimeout(() => touch(who), GLOW + 20);
  } catch {
    // It is no status.
  }
}

/** Returns the runs for which a pipeline is lit. */
function lit(pipeline) {
  if (pipeline.running.length) return pipeline.running;
  const known = glows.get(pipeline.who);
  if (!known) return [];
  if (performance.now() < known.end) return known.runs;
  glows.delete(pipeline.who);
  return [];
}

/** Has screen readers say what has changed of a pipeline. */
function tell(old, pipeline) {
  const who = line(pipeline.who, 60);
  if (old.state !== pipeline.state) say(`${who} is ${stateOf(pipeline)}`);
  const { last } = pipeline;
  if (last && (last.ts !== old.last?.ts || last.status !== old.last?.status) && endOf(last) === 'failed') say(`A run of ${who} has failed`);
}

function takeBroker(value) {
  const state = value.state === 'connected' || value.state === 'away' ? value.state : 'unknown';
  if (network.broker.state !== 'unknown' && network.broker.state !== state) {
    // A broker that stops may say of each client that it is lost: one text tells all of that.
    if (state === 'away') speech.waiting = speech.waiting.filter((text) => !text.endsWith(' is lost'));
    say(state === 'away' ? 'The broker is away: all states are the last known ones' : 'The broker is connected again');
  }
  network.broker = { state, since: value.since };
  paint('links');
}

let refusals = 0;

function takeRefused(value) {
  refusals += 1;
  network.refused.unshift({ ...value, number: refusals });
  network.refused.sort((a, b) => b.ts - a.ts || b.number - a.number);
  network.refused.length = Math.min(network.refused.length, MAX_REFUSED);
}

function takeEdges(edges) {
  network.edges = array(edges).filter((edge) => typeof edge?.from === 'string' && typeof edge?.to === 'string');
}

let fetching = false;

/** Fetches all that the gateway knows, once in five seconds at most. */
function refetch() {
  if (fetching) return;
  fetching = true;
  setTimeout(async () => {
    fetching = false;
    try {
      takeNetwork(await (await ask('api/network')).json());
    } catch {
      // The stream says whether the gateway is away.
    }
  }, 5_000);
}

// ---------------------------------------------------------------- words for states

const STATES = new Set(['online', 'paused', 'offline', 'lost']);
const RUN_STATES = new Set(['succeeded', 'failed', 'canceled', 'running', 'pending']);

/** Returns the state of a pipeline, one of a fixed list. */
const stateOf = (pipeline) => (STATES.has(pipeline.state) ? pipeline.state : 'unknown');
/** Returns the state of a run, one of a fixed list. */
const runState = (state) => (RUN_STATES.has(state) ? state : 'unknown');

/** Returns how the status of an end ended. */
function endOf(last) {
  if (last.status === 'finished') return 'succeeded';
  return last.status === 'canceled' ? 'canceled' : 'failed';
}

/** Returns a state with its sign; `kind` is of a fixed list. */
function badge(kind, text = kind) {
  return el('span', { class: `badge s-${kind}` }, text);
}

/** Makes a badge show a state. */
function rebadge(node, kind, text = kind) {
  dress(node, `badge s-${kind}`);
  put(node, text);
}

// ---------------------------------------------------------------- links and banner

function paintLinks() {
  const { broker } = network;
  const open = gateway.state === 'open';
  dress($('broker'), `link is-${open ? broker.state : 'unknown'}`);
  const brokerWords = { connected: 'broker connected', away: 'broker away', unknown: 'broker unknown' };
  put($('broker').lastElementChild, brokerWords[open ? broker.state : 'unknown']);
  dress($('gateway'), `link is-${open ? 'connected' : gateway.state === 'away' ? 'away' : 'unknown'}`);
  put($('gateway').lastElementChild, open ? 'live' : gateway.state === 'away' ? 'not live' : 'connecting');
  $('gateway').title = network.version ? `tael ${network.version} on ${network.host}` : '';
  put($('root'), network.root);
  put($('empty-root'), network.root);
  put($('empty-command'), `tael client --root ${network.root} --topic ${network.root}/in --who hello --command 'echo hello'`);
  put($('empty-message'), `tael message --topic ${network.root}/in status=finished`);
  // A gateway without tokens needs none.
  $('token-open').hidden = !(network.control || token() || gateway.wantsToken);
  if (document.body.classList.contains('is-old') !== areOld()) {
    document.body.classList.toggle('is-old', areOld());
    for (const who of network.pipelines.keys()) touch(who);
    for (const part of ['list', 'pipeline', 'nodes']) paint(part);
  }
  const away = open && broker.state === 'away';
  $('banner').hidden = !(away || (gateway.state === 'away' && !gateway.wantsToken));
  $('banner-retry').hidden = gateway.state !== 'away';
  if (gateway.state === 'away') {
    const left = gateway.next === null || gateway.next === undefined ? null : Math.max(0, Math.ceil(gateway.next - now()));
    put($('banner-text'), `The gateway cannot be reached since ${clock(gateway.since)} (${counted(now() - gateway.since)}): ${gateway.cause}. ${left === null ? 'Connecting …' : `Next attempt in ${left} s.`} Below is what was last known.`);
  } else if (away) {
    const since = isNumber(broker.since) ? ` since ${clock(broker.since)} (${counted(now() - broker.since)})` : '';
    put($('banner-text'), `The broker is away${since}. The gateway connects again by itself; messages are refused until then. Below is what was last known.`);
  }
}

// ---------------------------------------------------------------- list of pipelines

const collator = new Intl.Collator(undefined, { numeric: true });

const list = {
  /** Rows by name, and the names in order. */
  rows: new Map(),
  names: [],
  /** Names of pipelines that run something. */
  running: new Set(),
  /** Name of the row at which the Tab key stops. */
  stop: undefined,
  show: 'all',
  search: '',
};

/** Ways to narrow the list, each with its test. */
const SHOWS = {
  all: ['all', () => true],
  running: ['running', (p) => p.running.length > 0],
  waiting: ['waiting', (p) => p.waiting > 0],
  failed: ['last run failed', (p) => Boolean(p.last) && endOf(p.last) === 'failed'],
  paused: ['paused', (p) => p.state === 'paused'],
  away: ['offline or lost', (p) => p.state === 'offline' || p.state === 'lost'],
};

function makeRow(who) {
  const cell = (name, ...children) => el('span', { role: 'cell', class: name }, ...children);
  const row = {
    name: el('a', { href: `#/pipelines/${encodeURIComponent(who)}`, tabindex: '-1' }, visible(who)),
    old: el('span', { class: 'unseen' }),
    state: badge('unknown'),
    now: cell('now'),
    waiting: cell('waiting num'),
    end: badge('unknown', ''),
    when: el('span', { class: 'when' }),
    took: cell('took num'),
    host: cell('host'),
    version: cell('version'),
  };
  row.node = el('div', { role: 'row', class: 'row' }, cell('name', row.name), cell('state', row.old, row.state), row.now, row.waiting, cell('last', row.end, ' ', row.when), row.took, row.host, row.version);
  return row;
}

function fillRow(row, pipeline) {
  const state = stateOf(pipeline);
  const { last, running } = pipeline;
  put(row.old, areOld() ? 'last known: ' : '');
  rebadge(row.state, state);
  dress(row.node, `row${lit(pipeline).length ? ' is-running' : ''}${state === 'offline' || state === 'lost' ? ' is-away' : ''}`);
  fillNow(row, pipeline);
  put(row.waiting, isNumber(pipeline.waiting) ? String(pipeline.waiting) : '');
  row.waiting.classList.toggle('is-some', pipeline.waiting > 0);
  if (last) {
    const kind = endOf(last);
    const code = kind === 'failed' && isNumber(last.return_code) ? ` (${last.return_code})` : '';
    rebadge(row.end, kind, last.status === 'falsestart' ? 'false start' : `${kind}${code}`);
    put(row.when, brief(last.ts));
    put(row.took, span(elapsed(last.time_elapsed)));
  } else {
    rebadge(row.end, 'none', 'none yet');
    put(row.when, '');
    put(row.took, '');
  }
  put(row.host, line(pipeline.host, 100));
  put(row.version, line(pipeline.version, 40));
  row.text = `${pipeline.who} ${pipeline.host} ${pipeline.version} ${state}`.toLowerCase();
}

/** Says what a pipeline runs, and for how long. */
function fillNow(row, { running }) {
  if (!running.length) return put(row.now, '');
  const since = Math.min(...running.map((run) => run.started).filter(isNumber));
  const time = Number.isFinite(since) ? counted(now() - since) : '';
  put(row.now, running.length > 1 ? `${running.length} run, ${time}` : `running ${time}`);
}

/** Returns whether the list shows a pipeline now. */
function isShown(row, pipeline) {
  return SHOWS[list.show][1](pipeline) && row.text.includes(list.search);
}

function paintList() {
  const body = $('list-body');
  const names = [...changed.names];
  changed.names.clear();
  const added = [];
  for (const who of names) {
    const pipeline = network.pipelines.get(who);
    let row = list.rows.get(who);
    if (!pipeline) {
      row?.node.remove();
      list.rows.delete(who);
      list.running.delete(who);
      continue;
    }
    if (!row) {
      row = makeRow(who);
      list.rows.set(who, row);
      added.push(who);
    }
    fillRow(row, pipeline);
    row.node.hidden = !isShown(row, pipeline);
    if (pipeline.running.length) list.running.add(who);
    else list.running.delete(who);
  }
  // Only a name that comes or goes moves rows.
  if (added.length || list.names.length !== list.rows.size) {
    list.names = [...list.rows.keys()].sort(collator.compare);
    let at = body.firstElementChild;
    for (const who of list.names) {
      const { node } = list.rows.get(who);
      if (node === at) at = at.nextElementSibling;
      else body.insertBefore(node, at);
    }
  }
  stopAt(list.stop);
  paintSums();
  paintEdges(names);
  const notes = [];
  const shown = list.names.reduce((n, who) => n + (list.rows.get(who).node.hidden ? 0 : 1), 0);
  if (shown < list.names.length || network.truncated) notes.push(`${shown} of ${list.names.length}`);
  if (network.truncated) notes.push('there are more than the gateway keeps');
  if (areOld()) notes.push('states as last known');
  put($('list-note'), notes.join('; '));
  $('list-empty').hidden = list.names.length > 0 || gateway.state !== 'open';
  $('list').hidden = list.names.length === 0;
  $('sums').hidden = list.names.length === 0;
  $('search').parentElement.hidden = list.names.length === 0;
  $('drawing-card').hidden = drawing.names.length === 0;
  const hits = list.names.length === 0 || shown > 0;
  $('list-none').hidden = hits;
  put($('count-pipelines'), list.names.length ? String(list.names.length) : '');
}

/** Lets the Tab key stop at one row of the list: arrow keys move on from there. */
function stopAt(who) {
  const isShown = (name) => list.rows.get(name)?.node.hidden === false;
  const next = isShown(who) ? who : list.names.find(isShown);
  if (next === list.stop && list.rows.get(next)?.name.tabIndex === 0) return;
  list.rows.get(list.stop)?.name.setAttribute('tabindex', '-1');
  list.stop = next;
  list.rows.get(next)?.name.setAttribute('tabindex', '0');
}

/** Narrows the list anew. */
function narrow() {
  for (const [who, row] of list.rows) {
    const hidden = !isShown(row, network.pipelines.get(who) ?? { running: [] });
    if (row.node.hidden !== hidden) row.node.hidden = hidden;
  }
  paint('list');
}

function paintSums() {
  const sums = Object.fromEntries(Object.keys(SHOWS).map((name) => [name, 0]));
  for (const pipeline of network.pipelines.values()) {
    for (const [name, [, test]] of Object.entries(SHOWS)) if (test(pipeline)) sums[name] += 1;
  }
  for (const button of $('sums').children) {
    const name = button.dataset.show;
    put(button.firstElementChild, String(sums[name]));
    dress(button, `sum f-${name}${sums[name] ? '' : ' is-none'}`);
    button.setAttribute('aria-pressed', String(name === list.show));
  }
}

function makeSums() {
  for (const [name, [words]] of Object.entries(SHOWS)) {
    const button = el('button', { type: 'button', class: `sum f-${name}`, 'data-show': name, 'aria-pressed': 'false' }, el('b', {}, '0'), ' ', el('span', {}, words));
    button.addEventListener('click', () => {
      list.show = list.show === name ? 'all' : name;
      narrow();
    });
    $('sums').append(button);
  }
}

/** Moves the focus between the links of a list with the arrow keys. */
function arrows(container, selector) {
  container.addEventListener('keydown', (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey || !event.target.matches(selector)) return;
    const links = [...container.querySelectorAll(selector)].filter((link) => !link.closest('[hidden]'));
    const at = links.indexOf(event.target);
    const next = links[Math.max(0, Math.min(links.length - 1, at + step))];
    event.preventDefault();
    next?.focus();
  });
}

// ---------------------------------------------------------------- the drawing

const ELEMENTS = new Set(['svg', 'g', 'rect', 'path', 'text', 'tspan', 'title', 'line', 'polyline', 'polygon', 'circle', 'ellipse']);
const NUMBERS = new Set(['x', 'y', 'x1', 'y1', 'x2', 'y2', 'cx', 'cy', 'r', 'rx', 'ry', 'dx', 'dy', 'width', 'height', 'viewBox', 'points', 'd', 'transform', 'font-size']);
const WORDS = new Set(['class', 'text-anchor', 'dominant-baseline']);
const NAMES = new Set(['data-who', 'data-from', 'data-to']);

/** Returns a copy of what a drawing may hold: shapes, texts, names. */
function cleaned(text) {
  const parsed = new DOMParser().parseFromString(text, 'image/svg+xml').documentElement;
  if (parsed.namespaceURI !== SVG || parsed.localName !== 'svg') throw new Error('the drawing is no SVG');
  let left = MAX_DRAWING;
  const copy = (from, depth) => {
    left -= 1;
    if (left < 0 || depth > MAX_DEPTH) throw new Error('the drawing is too large');
    const node = document.createElementNS(SVG, from.localName);
    for (const { name, value } of from.attributes) {
      const fits = (NUMBERS.has(name) && /^[\w\s.,+()%-]*$/.test(value)) || (WORDS.has(name) && /^[\w\s-]*$/.test(value)) || NAMES.has(name);
      if (fits) node.setAttribute(name, value);
    }
    for (const child of from.childNodes) {
      if (child.nodeType === Node.TEXT_NODE) node.append(visible(child.data));
      else if (child.nodeType === Node.ELEMENT_NODE && child.namespaceURI === SVG && ELEMENTS.has(child.localName)) node.append(copy(child, depth + 1));
    }
    return node;
  };
  return copy(parsed, 0);
}

const drawing = {
  /** Nodes by name, names in the order of the drawing. */
  nodes: new Map(),
  names: [],
  /** Edges by the name that they lead to. */
  into: new Map(),
  known: '',
  timer: null,
};

/** Returns what a drawing is made from. */
function drawnFrom() {
  return JSON.stringify([[...network.pipelines].map(([who, p]) => [who, p.triggers]).sort(), network.edges]);
}

/** Fetches the drawing soon if pipelines or their triggers have changed. */
function redraw() {
  drawing.timer ??= setTimeout(async () => {
    drawing.timer = null;
    if (drawnFrom() === drawing.known) return;
    try {
      const [image, edges] = await Promise.all([ask('api/graph.svg', { accept: 'image/svg+xml' }).then((r) => r.text()), ask('api/network').then((r) => r.json())]);
      takeEdges(edges.edges);
      draw(cleaned(image));
      drawing.known = drawnFrom();
      put($('drawing-note'), edges.truncated === true ? 'only a part of the network' : '');
    } catch (error) {
      put($('drawing-note'), `not drawn: ${error.message}`);
    }
  }, GATHER);
}

function draw(svg) {
  drawing.nodes.clear();
  drawing.into.clear();
  drawing.names = [];
  svg.setAttribute('role', 'group');
  svg.setAttribute('aria-labelledby', 'heading-drawing');
  const box = (svg.getAttribute('viewBox') ?? '').split(/[\s,]+/).map(Number);
  const width = box[2] || Number.parseFloat(svg.getAttribute('width')) || 600;
  const height = box[3] || Number.parseFloat(svg.getAttribute('height')) || 200;
  if (box.length !== 4) svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
  svg.setAttribute('width', width);
  svg.setAttribute('height', height);
  for (const node of svg.querySelectorAll('g.node[data-who]')) {
    const { who } = node.dataset;
    drawing.nodes.set(who, node);
    drawing.names.push(who);
    node.setAttribute('role', 'link');
    node.setAttribute('tabindex', drawing.names.length === 1 ? '0' : '-1');
    node.addEventListener('click', () => openPipeline(who));
  }
  for (const edge of svg.querySelectorAll('g.edge[data-to]')) {
    const { from, to } = edge.dataset;
    // An edge from a topic that no pipeline publishes to has the topic in its title alone.
    const topic = from === undefined ? (edge.querySelector('title')?.textContent ?? '').split(' → ')[0] : null;
    if (!drawing.into.has(to)) drawing.into.set(to, []);
    drawing.into.get(to).push({ edge, from, topic, base: edge.getAttribute('class') });
  }
  // Edges lie below nodes; their titles would be read one by one.
  for (const edge of svg.querySelectorAll('g.edge')) edge.setAttribute('aria-hidden', 'true');
  $('drawing').replaceChildren(svg);
  $('drawing-card').hidden = drawing.names.length === 0;
  // A large network is legible only at its own size.
  const fits = width <= 2.2 * Math.max(320, $('drawing').clientWidth) && height <= 900;
  setFit(fits);
  paintEdges(drawing.names);
}

function setFit(fit) {
  $('drawing').classList.toggle('is-fit', fit);
  $('drawing-fit').setAttribute('aria-pressed', String(fit));
}

/** Shows on the drawing what these pipelines do. */
function paintEdges(names) {
  for (const who of names) {
    const node = drawing.nodes.get(who);
    const pipeline = network.pipelines.get(who);
    if (!node || !pipeline) continue;
    const runs = lit(pipeline);
    const running = runs.length > 0;
    const failed = pipeline.last && endOf(pipeline.last) === 'failed';
    dress(node, `node s-${stateOf(pipeline)}${running ? ' is-running' : ''}${failed ? ' is-failed' : ''}`);
    // A name that is cut on the drawing is said as it is seen, and then whole.
    const seen = line(node.querySelector('text')?.textContent, 100);
    const name = seen && seen !== line(who, 100) ? `${seen}, ${line(who, 100)}` : line(who, 100);
    node.setAttribute('aria-label', `${name}: ${stateWords(stateOf(pipeline))}${running ? ', running' : ''}${failed ? ', last run failed' : ''}`);
    for (const { edge, from, topic, base } of drawing.into.get(who) ?? []) {
      const filters = topic === null ? filtersOf(from, who) : [topic];
      dress(edge, `${base}${running && haveStarted(filters, runs) ? ' is-running' : ''}`);
    }
  }
}

/** Returns the topic filters by which `from` starts `to`. */
function filtersOf(from, to) {
  return network.edges.filter((edge) => edge.from === from && edge.to === to).map((edge) => edge.topic);
}

/** Returns whether one of these runs was started by a message that one of these filters matches. */
function haveStarted(filters, runs) {
  return runs.some(({ reason }) => {
    if (typeof reason !== 'string') return false;
    const topic = reason.split(' ')[0];
    return filters.some((filter) => typeof filter === 'string' && matches(filter, topic));
  });
}

/** Returns whether a topic filter of MQTT matches a topic. */
function matches(filter, topic) {
  const want = filter.split('/');
  const have = topic.split('/');
  for (const [i, level] of want.entries()) {
    if (level === '#') return true;
    if (i >= have.length || (level !== '+' && level !== have[i])) return false;
  }
  return want.length === have.length;
}

/** Moves the focus on the drawing: right to what is started, left to what starts it. */
function moveOnDrawing(event) {
  const node = event.target.closest('g.node');
  if (!node) return;
  const { who } = node.dataset;
  const at = drawing.names.indexOf(who);
  let next = null;
  if (event.key === 'Enter' || event.key === ' ') {
    event.preventDefault();
    return openPipeline(who);
  }
  if (event.key === 'ArrowRight') next = [...drawing.into].find(([, edges]) => edges.some(({ from }) => from === who))?.[0];
  else if (event.key === 'ArrowLeft') next = drawing.into.get(who)?.[0]?.from;
  else if (event.key === 'ArrowDown') next = drawing.names[at + 1];
  else if (event.key === 'ArrowUp') next = drawing.names[at - 1];
  else return;
  event.preventDefault();
  const target = drawing.nodes.get(next);
  if (!target) return;
  node.setAttribute('tabindex', '-1');
  target.setAttribute('tabindex', '0');
  target.focus();
  target.scrollIntoView({ block: 'nearest', inline: 'nearest' });
}

// ---------------------------------------------------------------- one pipeline

const route = { view: '', who: null, unit: null };
const view = { runs: [], reveal: false, source: '', statuses: [], unit: null, timer: null, turn: 0 };

const at = (who, unit) => `#/pipelines/${encodeURIComponent(who)}${unit ? `/${encodeURIComponent(unit)}` : ''}`;
const openPipeline = (who) => { location.hash = at(who); };
const api = (who, rest) => `api/pipelines/${encodeURIComponent(who)}/${rest}`;

/** Fetches the runs of the shown pipeline once changes have settled. */
function refreshSoon() {
  view.timer ??= setTimeout(() => {
    view.timer = null;
    refresh();
  }, GATHER);
}

/** Shows the newest run, as long as a person has chosen none and reads no older one. */
function followRuns() {
  const shown = view.runs.find((run) => run.unit === output.unit);
  const known = view.runs.filter((run) => run.unit);
  if (!shown) return known.length ? showUnit(known[0].unit) : undefined;
  const newest = known.find((run) => run.state === 'running');
  if (newest && shown.state !== 'running' && output.follow) showUnit(newest.unit);
}

/** Gives each run a key: its unit, otherwise its times. Of equal ones the oldest has the number one. */
function keyed(runs) {
  const seen = new Map();
  return runs.toReversed().map((run) => {
    if (run.unit) return { ...run, key: run.unit };
    const times = `${run.started} ${run.ended}`;
    seen.set(times, (seen.get(times) ?? 0) + 1);
    return { ...run, key: `heard ${times} ${seen.get(times)}` };
  }).reverse();
}

/** Fetches runs and statuses of the shown pipeline. */
async function refresh() {
  const { who } = route;
  if (!who) return;
  view.turn += 1;
  const { turn } = view;
  const load = (rest) => ask(api(who, rest)).then((response) => response.json());
  const [runs, statuses] = await Promise.allSettled([load(`runs?limit=${MAX_RUNS}`), load(`statuses?limit=${MAX_RUNS}`)]);
  if (turn !== view.turn || who !== route.who) return;
  if (runs.status === 'fulfilled') {
    view.runs = keyed(array(runs.value.runs).filter((run) => typeof run?.unit === 'string').slice(0, MAX_RUNS));
    view.source = runs.value.source;
    const host = line(network.pipelines.get(who)?.host, 60) || 'another host';
    put($('runs-note'), view.source === 'heard' ? `as heard since the gateway was started; ids and output are on ${host}` : '');
  } else {
    put($('runs-note'), `not read: ${runs.reason.message}`);
  }
  if (statuses.status === 'fulfilled') {
    view.statuses = array(statuses.value.statuses).filter((s) => s && typeof s === 'object').slice(0, MAX_RUNS);
    put($('statuses-note'), statuses.value.source === 'heard' ? 'as heard since the gateway was started' : '');
  }
  if (!route.unit) followRuns();
  paint('runs');
  paint('unit');
}

function paintPipeline() {
  const { who } = route;
  if (!who) return;
  const pipeline = network.pipelines.get(who);
  put($('pipeline-name'), visible(who));
  const state = pipeline ? stateOf(pipeline) : 'unknown';
  $('pipeline-state').replaceChildren(badge(state, pipeline ? stateWords(state) : gateway.state === 'open' ? 'not known' : ' …'));
  const facts = [];
  if (pipeline) {
    const { running, last } = pipeline;
    facts.push(['Host', line(pipeline.host, 100)], ['Version', line(pipeline.version, 40)]);
    facts.push([state === 'offline' && isNumber(pipeline.until) ? 'Stopped' : 'Since', clock(state === 'offline' && isNumber(pipeline.until) ? pipeline.until : pipeline.since)]);
    facts.push(['Running', running.length ? String(running.length) : 'nothing']);
    facts.push(['Waiting', isNumber(pipeline.waiting) ? String(pipeline.waiting) : 'not known here']);
    if (last) facts.push(['Last end', `${last.status === 'falsestart' ? 'false start' : endOf(last)} at ${clock(last.ts)}`]);
    for (const trigger of array(pipeline.triggers).slice(0, 20)) {
      facts.push([`Trigger ${line(trigger?.name, 60)}`.trim(), array(trigger?.topics).slice(0, 20).map((topic) => line(topic, 200)).join(', ')]);
    }
  }
  fillFacts($('pipeline-facts'), facts);
  paintActions(pipeline);
}

/** Fills a list of terms and texts. */
function fillFacts(node, facts) {
  const shown = facts.filter(([, text]) => text !== '');
  sync(node, shown.map(([term, text], i) => ({ term, text, key: `${i}` })), (f) => f.key, () => el('div', {}, el('dt'), el('dd')), (row, { term, text }) => {
    put(row.firstElementChild, term);
    put(row.lastElementChild, text);
  });
}

/** Shows the buttons that this caller may use. */
function paintActions(pipeline) {
  const alive = pipeline && !areOld() && (pipeline.state === 'online' || pipeline.state === 'paused');
  $('actions').hidden = !network.control || !pipeline;
  const wanted = network.control && pipeline ? ['raise', pipeline.state === 'paused' ? 'resume' : 'pause', 'retry'] : [];
  const triggers = array(pipeline?.triggers).filter((trigger) => typeof trigger?.name === 'string').map(({ name, requires }) => ({ name, requires: array(requires).filter(isAttribute) }));
  const key = JSON.stringify(triggers);
  sync($('actions'), wanted, (name) => (name === 'raise' ? `raise ${key}` : name), (name) => {
    if (name === 'raise' && triggers.length > 1) return makeRaise(triggers);
    const button = el('button', { type: 'button' }, { raise: 'Raise', pause: 'Pause', resume: 'Resume', retry: 'Retry last failed' }[name]);
    button.addEventListener('click', () => (name === 'raise' ? askRaise(button, triggers[0]) : control(button, name)));
    return button;
  }, (node) => {
    for (const part of node.matches('button') ? [node] : node.children) part.disabled = !alive;
  });
}

/** Returns whether a text is the name of an attribute as it stands: not cut, and without escapes. */
function isAttribute(name) {
  return typeof name === 'string' && /^[^\s=\\…]+$/u.test(name) && !RESERVED.includes(name);
}

/** Makes a button with a choice among triggers. */
function makeRaise(triggers) {
  const choice = el('select', { 'aria-label': 'Trigger to raise' }, ...triggers.map(({ name }) => el('option', {}, line(name, 60))));
  const button = el('button', { type: 'button' }, 'Raise');
  const chosen = () => triggers[choice.selectedIndex];
  button.addEventListener('click', () => askRaise(button, chosen(), chosen().name));
  return el('span', { class: 'actions' }, choice, button);
}

/**
 * What the question about a raise is for: its button, its pipeline, the trigger to name, if it has several, and the
 * attributes that are required.
 */
const raising = { button: null, who: null, trigger: undefined, requires: [] };

/** Asks with which attributes to raise `known`, the trigger of the shown pipeline; `trigger` is its name if it has several. */
function askRaise(button, known, trigger) {
  const { name, requires = [] } = known ?? {};
  const box = $('raise-attributes');
  // What was given before may be wanted again, with a change.
  if (raising.who !== route.who || raising.trigger !== trigger || !box.value.trim()) {
    box.value = requires.map((each) => `${each}=`).join('\n');
    const end = box.value.indexOf('=') + 1;
    box.setSelectionRange(end, end);
  }
  Object.assign(raising, { button, who: route.who, trigger, requires });
  put($('raise-heading'), `Raise ${line(route.who, 60)}`);
  const words = [name && name !== 'default' ? `Trigger ${line(name, 60)}.` : '', requires.length ? `Required: ${line(requires.join(', '), 300)}.` : ''];
  put($('raise-trigger'), words.filter(Boolean).join(' '));
  put($('raise-error'), '');
  $('raise-box').showModal();
  box.focus();
}

/** Names that are parts of a request, so that no attribute has them. */
const RESERVED = ['action', 'trigger', 'tael-request'];

/** Reads attributes, one `NAME=VALUE` a line, as `tael control WHO raise` takes them. */
function readAttributes(text) {
  const attributes = new Map();
  for (const [i, each] of text.split('\n').entries()) {
    if (each.trim() === '') continue;
    const at = each.indexOf('=');
    const name = each.slice(0, Math.max(0, at)).trim();
    if (!name) throw new Error(`Line ${i + 1} is no NAME=VALUE.`);
    if (RESERVED.includes(name)) throw new Error(`Line ${i + 1}: ${name} is part of the request; choose another name.`);
    if (attributes.has(name)) throw new Error(`Line ${i + 1}: ${line(name, 60)} is given twice.`);
    const value = each.slice(at + 1);
    if (!value && raising.requires.includes(name)) throw new Error(`Line ${i + 1}: ${line(name, 60)} needs a value.`);
    attributes.set(name, value);
  }
  return attributes.size ? Object.fromEntries(attributes) : undefined;
}

function raise() {
  let attributes;
  try {
    attributes = readAttributes($('raise-attributes').value);
  } catch (error) {
    put($('raise-error'), error.message);
    $('raise-attributes').focus();
    return;
  }
  $('raise-box').close();
  control(raising.button, 'raise', null, raising.trigger, attributes);
}

/** Asks the shown pipeline to do something. */
async function control(button, action, unit, trigger, attributes) {
  const { who } = route;
  button.disabled = true;
  const result = $('action-result');
  dress(result, 'result');
  put(result, `${action}: waiting for ${line(who, 60)} …`);
  try {
    const response = await ask(api(who, 'control'), { method: 'POST', body: { action, ...(unit && { unit }), ...(trigger && { trigger }), ...(attributes && { attributes }) } });
    const { reply } = await response.json();
    const failed = reply && typeof reply === 'object' && (reply.ok === false || typeof reply.error === 'string');
    dress(result, `result ${failed ? 'is-bad' : 'is-good'}`);
    put(result, `${action}: ${failed ? line(reply.error ?? reply) : 'done'}`);
    // What begins is what a person wants to see.
    const begun = !failed && ['raise', 'retry'].includes(action) && typeof reply?.unit === 'string' ? reply.unit : null;
    if (begun && who === route.who && network.pipelines.get(who)?.local) location.hash = at(who, begun);
  } catch (error) {
    dress(result, 'result is-bad');
    put(result, `${action}: ${line(error.message)}`);
  } finally {
    button.disabled = false;
  }
  refreshSoon();
}

// ---------------------------------------------------------------- runs as bars and rows

/** Returns the seconds that a run has taken so far. */
function taken(run) {
  if (isNumber(run.seconds)) return run.seconds;
  if (isNumber(run.started) && isNumber(run.ended)) return run.ended - run.started;
  return run.state === 'running' && isNumber(run.started) ? Math.max(0, now() - run.started) : null;
}

function paintRuns() {
  paintChart();
  const isShown = view.runs.some((run) => run.unit !== '' && run.unit === output.unit);
  const stop = isShown ? null : view.runs.find((run) => run.unit);
  sync($('runs').tBodies[0], view.runs, (run) => run.key, (run) => {
    const link = run.unit ? el('a', { class: 'unit', href: at(route.who, run.unit) }, visible(run.unit)) : el('span', { class: 'note' }, 'not here');
    return el('tr', {}, el('th', { scope: 'row' }, link), el('td', {}, badge('unknown')), el('td'), el('td', { class: 'num' }), el('td', { class: 'num' }), el('td', { class: 'reason' }));
  }, (row, run) => {
    const state = runState(run.state);
    const [, end, started, took, code, reason] = row.children;
    rebadge(end.firstElementChild, state, state === 'pending' ? 'waiting' : state);
    put(started, clock(run.started));
    put(took, run.state === 'running' ? counted(taken(run)) : span(taken(run)));
    put(code, isNumber(run.code) ? String(run.code) : '');
    put(reason, (line(run.about, 200) || line(run.reason, 200)) + (run.attempt > 1 ? ` (attempt ${run.attempt})` : ''));
    const isOpen = run.unit !== '' && run.unit === output.unit;
    // The Tab key stops at one run: arrow keys move on from there.
    if (run.unit) row.firstElementChild.firstElementChild.setAttribute('tabindex', isOpen || run === stop ? '0' : '-1');
    dress(row, `${isOpen ? 'is-open' : ''}${state === 'running' ? ' is-running' : ''}`.trim());
    if (isOpen) row.setAttribute('aria-current', 'true');
    else row.removeAttribute('aria-current');
  });
  $('runs').parentElement.hidden = view.runs.length === 0;
  $('runs-empty').hidden = view.runs.length > 0;
  // Two equal ones are two: the oldest of them has the number one.
  const seen = new Map();
  const statuses = view.statuses.toReversed().map((status) => {
    const text = JSON.stringify(status);
    seen.set(text, (seen.get(text) ?? 0) + 1);
    return { ...status, key: `${seen.get(text)} ${text}` };
  }).reverse();
  sync($('statuses'), statuses, (status) => status.key, (status) => {
    const kinds = { started: 'running', finished: 'succeeded', failed: 'failed', falsestart: 'failed', canceled: 'canceled' };
    const words = [status.reason, isNumber(status.return_code) && status.return_code !== 0 ? `code ${status.return_code}` : '', span(elapsed(status.time_elapsed))];
    return el('li', {}, el('time', {}, clock(status.ts)), ' ', badge(Object.hasOwn(kinds, status.status) ? kinds[status.status] : 'unknown', line(status.status, 40)), ' ', el('span', { class: 'words' }, words.filter(Boolean).map((word) => line(word, 200)).join(', ')));
  }, () => {});
  $('statuses').parentElement.hidden = view.statuses.length === 0;
  $('statuses-empty').hidden = view.statuses.length > 0;
}

/** Height of a line of times above the chart, and width of a character of it. */
const LABEL_LINE = 13;
const LABEL_CHARACTER = 6.2;
/** Maximum number of these lines. */
const LABEL_LINES = 4;

/** Places the times of the bars that are cut, newest first: each beside or above the others. */
function cutLabels(times, full, middle, width) {
  const places = new Map();
  const used = [];
  for (let i = times.length - 1; i >= 0; i -= 1) {
    if (times[i] <= full) continue;
    const text = span(times[i]);
    const half = (text.length * LABEL_CHARACTER) / 2;
    const x = Math.max(half, Math.min(width - half, middle(i)));
    let on = used.findIndex((left) => x + half + LABEL_CHARACTER <= left);
    if (on < 0) on = used.length;
    // The table has those for which there is no room.
    if (on >= LABEL_LINES) continue;
    used[on] = x - half;
    places.set(i, { text, x, line: on });
  }
  return { places, lines: used.length };
}

/** Draws the last runs, oldest at the left: height is time, colour and sign are the end. */
function paintChart() {
  const box = $('chart');
  const runs = [...view.runs].reverse();
  box.hidden = runs.length === 0;
  if (!runs.length) return box.replaceChildren();
  const width = Math.max(240, box.clientWidth);
  const [left, right, height, foot] = [60, 4, 118, 26];
  const times = runs.map((run) => taken(run) ?? 0);
  const most = Math.max(0.001, ...times);
  // One run that takes very long must not flatten the others: its bar is cut.
  const usual = [...times].sort((a, b) => a - b)[Math.floor((times.length - 1) * 0.9)];
  const full = usual > 0 ? Math.min(most, usual * 3) : most;
  const slots = Math.max(runs.length, 24);
  const step = (width - left - right) / slots;
  const placeOf = (i) => width - right - step * (runs.length - i);
  const labels = cutLabels(times, full, (i) => placeOf(i) + step / 2, width);
  const top = 8 + LABEL_LINE * labels.lines;
  const sums = {};
  for (const run of runs) sums[runState(run.state)] = (sums[runState(run.state)] ?? 0) + 1;
  const words = Object.entries(sums).map(([state, n]) => `${n} ${state}`).join(', ');
  const svg = shape('svg', { role: 'img', viewBox: `0 0 ${width} ${top + height + foot}`, width, height: top + height + foot, 'aria-label': `Last ${runs.length} runs: ${words}. The longest took ${span(most)}. The table below has them all.` });
  for (const part of [1, 0.5, 0]) {
    const y = top + height * (1 - part);
    svg.append(shape('line', { class: 'grid', x1: left, x2: width - right, y1: y, y2: y }));
    if (part && full > 0.001) svg.append(shape('text', { class: 'axis', x: left - 6, y: y + 4, 'text-anchor': 'end' }, span(full * part)));
  }
  runs.forEach((run, i) => {
    const state = runState(run.state);
    const x = placeOf(i);
    const gap = step > 4 ? Math.min(3, step * 0.25) : 0.5;
    const tall = Math.max(3, (height * Math.min(times[i], full)) / full);
    const bar = shape('g', { class: `bar-run s-${state}${run.unit && run.unit === output.unit ? ' is-open' : ''}${run.unit ? ' has-unit' : ''}` });
    bar.append(shape('title', {}, `${run.unit ? `${line(run.unit, 40)}: ` : ''}${state}, ${clock(run.started)}, ${span(times[i])}`));
    bar.append(shape('rect', { class: 'hit', x, y: top, width: step, height: height + 12 }));
    bar.append(shape('rect', { class: 'fill', x: x + gap / 2, y: top + height - tall, width: Math.max(1, step - gap), height: tall, rx: Math.min(2, step / 4) }));
    if (times[i] > full) bar.append(shape('rect', { class: 'cut', x, y: top + 9, width: step, height: 3 }));
    const label = labels.places.get(i);
    if (label) bar.append(shape('text', { class: 'axis time', x: label.x, y: top - 4 - LABEL_LINE * label.line, 'text-anchor': 'middle' }, label.text));
    const [middle, low] = [x + step / 2, top + height + 3];
    const reach = Math.min(3.5, step / 2);
    // A sign beside the colour: a wedge for failed, a dash for canceled.
    if (state === 'failed') bar.append(shape('path', { class: 'sign', d: `M${middle - reach} ${low + 6}L${middle} ${low}L${middle + reach} ${low + 6}Z` }));
    if (state === 'canceled') bar.append(shape('rect', { class: 'sign', x: middle - reach, y: low + 2, width: 2 * reach, height: 2 }));
    if (run.unit) bar.addEventListener('click', () => { location.hash = at(route.who, run.unit); });
    svg.append(bar);
  });
  const oldest = runs.find((run) => isNumber(run.started));
  const base = top + height + foot - 4;
  if (oldest && step * runs.length > 260) svg.append(shape('text', { class: 'axis', x: Math.max(left, width - right - step * runs.length), y: base }, clock(oldest.started)));
  svg.append(shape('text', { class: 'axis', x: width - right, y: base, 'text-anchor': 'end' }, clock(runs.at(-1).started)));
  box.replaceChildren(svg);
}

// ---------------------------------------------------------------- one run and its output

const output = { unit: null, stream: 'stdout', chosen: false, fresh: false, abort: null, pieces: [], length: 0, next: 0, cut: false, follow: true, ended: null, waiting: [], note: '', lacks: '' };

/** Shows a run of the pipeline. */
function showUnit(unit) {
  if (output.unit !== unit) {
    view.unit = null;
    output.unit = unit;
    output.fresh = true;
    preferStream(view.runs.find((run) => run.unit === unit));
    $('unit-card').hidden = !unit;
    loadUnit();
    openOutput();
  }
  paint('runs');
  paint('unit');
}

/** Selects the stream that says why a run has failed, unless a person has chosen one. */
function preferStream(run) {
  if (!output.chosen) output.stream = run?.state === 'failed' ? 'stderr' : 'stdout';
}

async function loadUnit() {
  const { unit } = output;
  if (!unit) return;
  let value;
  try {
    value = await (await ask(`units/${encodeURIComponent(unit)}`)).json();
  } catch (error) {
    value = { missing: error.status === 404 ? 'The ledger of this run is on another host: the list of runs has all that is known here.' : line(error.message) };
  }
  if (unit !== output.unit) return;
  view.unit = value;
  paint('unit');
  if (!output.fresh) return;
  output.fresh = false;
  const { stream } = output;
  preferStream(value);
  if (stream !== output.stream) openOutput();
}

function paintUnit() {
  const { unit } = output;
  $('unit-card').hidden = !unit || !route.who;
  if (!unit) return;
  const known = { ...view.runs.find((run) => run.unit === unit), ...view.unit };
  known.code ??= known.return_code;
  known.seconds ??= known.elapsed;
  const state = runState(known.state);
  put($('heading-unit'), `Run ${visible(unit)}`);
  $('unit-state').replaceChildren(badge(state, state === 'pending' ? 'waiting' : state));
  const facts = [['Started', clock(known.started)], ['Ended', clock(known.ended)], ['Took', span(taken(known))], ['Code', isNumber(known.code) ? String(known.code) : '']];
  facts.push(['Attempt', isNumber(known.attempt) ? String(known.attempt) : ''], ['Reason', line(known.reason, 400)], ['Trigger', line(known.trigger ?? known.work_type, 100)], ['Topic', line(known.topic, 400)], ['Event', line(known.event, 100)], ['Sender', line(known.sender, 100)], ['Command', line(known.command, 400)], ['Retry of', line(known.retry_of, 100)], ['Dropped output', known.dropped_stdout || known.dropped_stderr ? `${known.dropped_stdout ?? 0} bytes of stdout, ${known.dropped_stderr ?? 0} of stderr` : ''], ['Note', line(known.note ?? known.missing, 400)]);
  fillFacts($('unit-facts'), facts);
  const attributes = known.attributes && typeof known.attributes === 'object' ? Object.entries(known.attributes).slice(0, 256) : [];
  const box = $('unit-attributes').parentElement;
  box.hidden = attributes.length === 0;
  box.previousElementSibling.hidden = box.hidden;
  fillFacts($('unit-attributes'), attributes.map(([name, value]) => [line(name, 100), visible(value) || '""']));
  paintUnitActions(unit, state);
  if (view.reveal) {
    view.reveal = false;
    const card = $('unit-card');
    if (card.getBoundingClientRect().top > innerHeight * 0.6) card.scrollIntoView({ block: 'start' });
  }
}

/** Shows what this caller may do with a run. */
function paintUnitActions(unit, state) {
  const actions = { running: ['cancel'], pending: ['cancel'], failed: ['retry'], canceled: ['retry'] };
  const wanted = network.control && Object.hasOwn(actions, state) ? actions[state] : [];
  $('unit-actions').hidden = wanted.length === 0;
  sync($('unit-actions'), wanted.map((action) => ({ action, key: `${action} ${unit}` })), (each) => each.key, ({ action }) => {
    if (action === 'retry') {
      const button = el('button', { type: 'button' }, 'Retry this run');
      button.addEventListener('click', () => control(button, action, unit));
      return button;
    }
    const button = el('button', { type: 'button', class: 'danger' }, 'Cancel');
    // A second click within four seconds does it.
    let armed = null;
    button.addEventListener('click', () => {
      if (armed === null) {
        put(button, 'Cancel this run?');
        armed = setTimeout(() => { armed = null; put(button, 'Cancel'); }, 4_000);
        return;
      }
      clearTimeout(armed);
      armed = null;
      put(button, 'Cancel');
      control(button, action, unit);
    });
    return button;
  }, () => {});
}

/** Opens the output of the shown run, and closes that of another. */
function openOutput() {
  output.abort?.abort();
  Object.assign(output, { abort: null, pieces: [], length: 0, next: 0, cut: false, follow: true, ended: null, waiting: [], note: '', lacks: '' });
  $('output').replaceChildren();
  for (const button of document.querySelectorAll('[data-stream]')) button.setAttribute('aria-pressed', String(button.dataset.stream === output.stream));
  paint('output');
  if (!output.unit || route.view !== 'pipeline') return;
  output.abort = new AbortController();
  readOutput(output.unit, output.stream, output.abort.signal);
}

/** Reads the output of a run until it has ended. */
async function readOutput(unit, stream, signal) {
  for (let attempt = 0; !signal.aborted; attempt += 1) {
    try {
      const response = await ask(`units/${encodeURIComponent(unit)}/${stream}?from=${output.next}`, { accept: 'text/event-stream', signal });
      output.note = '';
      for await (const { event, data, id } of events(response)) {
        if (signal.aborted) return;
        attempt = 0;
        if (event === 'error') throw new Error('the gateway cannot read it');
        const value = JSON.parse(data);
        if (event === 'output') takeOutput(value, Number(id));
        else if (event === 'gap' || event === 'truncated') {
          output.lacks = event === 'gap' ? 'a part was not kept' : 'a program has cut it short';
          paint('output');
        } else if (event === 'end') {
          output.ended = value;
          paint('output');
          if (!output.chosen && stream === 'stderr' && output.next === 0) {
            // Many programs say on stdout what is wrong.
            output.stream = 'stdout';
            openOutput();
          }
          loadUnit();
          refreshSoon();
          return;
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refusal && error.status >= 400 && error.status < 500 && error.status !== 429) {
        output.note = error.status === 404 ? 'not on this host' : line(error.message);
        paint('output');
        return;
      }
      output.note = 'interrupted; connecting again';
      paint('output');
    }
    await new Promise((resolve) => { setTimeout(resolve, delay(attempt)); });
  }
}

/** Takes output that begins at the byte `from` and ends before the byte `to`. */
function takeOutput({ from, text }, to) {
  if (typeof text !== 'string') return;
  if (isNumber(from) && from > output.next) output.cut = true;
  if (Number.isSafeInteger(to) && to > 0) output.next = to;
  output.waiting.push(plain(text));
  output.length += text.length;
  // Of a flood only the end can be read.
  while (output.waiting.length > 1 && output.length - output.waiting[0].length > MAX_OUTPUT && !output.pieces.length) {
    output.length -= output.waiting.shift().length;
    output.cut = true;
  }
  paint('output');
}

function paintOutput() {
  const box = $('output');
  if (output.waiting.length) {
    const text = output.waiting.join('');
    output.waiting = [];
    const node = document.createTextNode(text);
    output.pieces.push(node);
    box.append(node);
    output.length = output.pieces.reduce((n, piece) => n + piece.length, 0);
    while (output.length > MAX_OUTPUT) {
      const first = output.pieces[0];
      const over = output.length - MAX_OUTPUT;
      if (first.length <= over) {
        output.pieces.shift().remove();
        output.length -= first.length;
      } else {
        first.deleteData(0, over);
        output.length -= over;
      }
      output.cut = true;
    }
    // Many small pieces cost more than one.
    if (output.pieces.length > 200) {
      box.normalize();
      output.pieces = [box.firstChild];
    }
    if (output.follow) box.scrollTop = box.scrollHeight;
  }
  const notes = [];
  if (output.note) notes.push(output.note);
  else if (output.ended) notes.push(output.length ? '' : 'empty');
  else if (output.unit) notes.push('live');
  if (output.lacks) notes.push(output.lacks);
  if (output.cut) notes.push('only the end is shown');
  put($('output-note'), notes.filter(Boolean).join('; '));
  $('output-follow').hidden = output.follow;
}

// ---------------------------------------------------------------- nodes, beacons, refused requests

const NODE_STATES = { fresh: 'online', online: 'online', stale: 'paused', lost: 'lost', offline: 'offline' };

function paintNodes() {
  const nodes = [...network.nodes.values()].sort((a, b) => collator.compare(a.node, b.node));
  const beacons = [...network.beacons.values()].sort((a, b) => collator.compare(a.topic, b.topic));
  const kind = (node) => (Object.hasOwn(NODE_STATES, node.state) ? NODE_STATES[node.state] : 'unknown');
  const silent = nodes.filter((node) => kind(node) !== 'online').length + beacons.filter((beacon) => beacon.fresh !== true).length;
  put($('count-nodes'), silent ? String(silent) : '');
  if (route.view !== 'nodes') return;
  sync($('nodes').tBodies[0], nodes, (node) => node.node, (node) => el('tr', {}, el('th', { scope: 'row' }, visible(node.node)), el('td', {}, badge('unknown')), el('td'), el('td', { class: 'num' })), (row, node) => {
    const [, state, host, age] = row.children;
    rebadge(state.firstElementChild, kind(node), stateWords(line(node.state, 40)));
    put(host, line(node.host, 100));
    put(age, isNumber(node.age) ? `${counted(node.age + now() - node.heard)} old` : '');
  });
  sync($('beacons').tBodies[0], beacons, (beacon) => beacon.topic, (beacon) => el('tr', {}, el('th', { scope: 'row' }, visible(beacon.topic)), el('td', {}, badge('unknown')), el('td', { class: 'num' })), (row, beacon) => {
    const [, state, when] = row.children;
    rebadge(state.firstElementChild, beacon.fresh === true ? 'online' : 'lost', stateWords(beacon.fresh === true ? 'fresh' : 'silent'));
    put(when, ago(beacon.ts));
    when.title = clock(beacon.ts);
  });
  for (const [name, items] of [['nodes', nodes], ['beacons', beacons]]) {
    $(`${name}-empty`).hidden = items.length > 0;
    $(name).parentElement.hidden = items.length === 0;
  }
}

function paintRefused() {
  put($('count-refused'), network.refused.length ? String(network.refused.length) : '');
  if (route.view !== 'refused') return;
  sync($('refused').tBodies[0], network.refused, (each) => each.number, (each) => el('tr', {}, el('td', {}, clock(each.ts)), el('td', { class: 'num' }, isNumber(each.status) ? String(each.status) : ''), el('th', { scope: 'row' }, line(each.path, 300)), el('td', {}, line(each.cause, 300)), el('td', {}, line(each.peer, 100))), () => {});
  put($('refused-note'), network.refused.length >= MAX_REFUSED ? `the last ${MAX_REFUSED}` : '');
  $('refused-empty').hidden = network.refused.length > 0;
  $('refused').parentElement.hidden = network.refused.length === 0;
}

// ---------------------------------------------------------------- messages

const log = { all: [], hits: [], fresh: [], rebuild: true, paused: false, missed: 0, dropped: 0, heard: 0, filter: '' };

/** Adds to an array that keeps its newest. */
function keep(array, item) {
  array.push(item);
  if (array.length > MAX_MESSAGES) array.shift();
}

/** Returns whether the filter of the page lets a message through. */
function passes(message) {
  const { filter } = log;
  if (!filter) return true;
  if (/(^|\/)[+#](\/|$)/.test(filter)) return matches(filter, message.topic);
  return message.text.includes(filter.toLowerCase());
}

function takeMessage(value) {
  if (typeof value.topic !== 'string') return;
  const message = { ...value, payload: visible(value.payload) };
  message.text = `${message.topic} ${message.from ?? ''} ${message.payload}`.toLowerCase();
  log.heard += 1;
  if (typeof value.payload === 'string') glowFor(value);
  keep(log.all, message);
  if (!passes(message)) return;
  if (log.paused) {
    log.missed += 1;
  } else {
    keep(log.hits, message);
    keep(log.fresh, message);
  }
  paint('messages');
}

function makeMessage(message) {
  const from = message.from ? line(message.from, 60) : '';
  const summary = el('summary', {}, el('time', {}, clock(message.ts)), ' ', el('span', { class: 'topic' }, line(message.topic, 300)), ' ', el('span', { class: 'from' }, from), ' ', el('span', { class: 'payload' }, line(message.payload, 300)));
  if (message.retained === true) summary.append(' ', el('span', { class: 'tag' }, 'retained'));
  const details = el('details', {}, summary);
  // The whole payload is laid out only for those who look.
  details.addEventListener('toggle', () => {
    if (details.children.length > 1) return;
    const cut = isNumber(message.size) && message.size > new TextEncoder().encode(message.payload).length ? `\n… ${message.size} bytes in all` : '';
    const id = message.id ? `id ${line(message.id, 100)}\n` : '';
    details.append(el('pre', {}, id + pretty(message.payload) + cut));
  });
  return el('li', {}, details);
}

/** Returns a payload of JSON over several lines. */
function pretty(payload) {
  try {
    return visible(JSON.stringify(JSON.parse(payload), null, 2));
  } catch {
    return payload;
  }
}

function paintMessages() {
  if (route.view !== 'messages') {
    log.fresh = [];
    log.rebuild = true;
    return;
  }
  const node = $('messages-list');
  if (log.rebuild) {
    node.replaceChildren(...[...log.hits].reverse().map(makeMessage));
    log.rebuild = false;
  } else if (log.fresh.length) {
    node.prepend(...[...log.fresh].reverse().map(makeMessage));
    while (node.childElementCount > MAX_MESSAGES) node.lastElementChild.remove();
  }
  log.fresh = [];
  const notes = [];
  if (log.paused) notes.push(`paused; ${log.missed} more`);
  if (log.filter) notes.push(`${log.hits.length} of the last ${log.all.length}`);
  else if (log.heard) notes.push(log.heard > MAX_MESSAGES ? `the last ${MAX_MESSAGES} of ${log.heard}` : `${log.heard}`);
  if (log.dropped) notes.push(`${log.dropped} left out, because they came too fast`);
  put($('messages-note'), notes.join('; '));
  $('messages-empty').hidden = log.hits.length > 0;
  put($('messages-empty'), log.filter ? 'No message passes the filter yet.' : 'Nothing has been heard since this page was opened.');
  $('messages').hidden = log.hits.length === 0;
}

function setFilter(text) {
  log.filter = text.trim();
  log.hits = log.all.filter(passes);
  log.rebuild = true;
  paint('messages');
}

function setPaused(paused) {
  log.paused = paused;
  log.missed = 0;
  $('pause').setAttribute('aria-pressed', String(paused));
  put($('pause'), paused ? 'Go on' : 'Pause');
  if (!paused) setFilter(log.filter);
  paint('messages');
}

// ---------------------------------------------------------------- token

function needToken() {
  const box = $('token-box');
  if (box.open) return;
  put($('token-error'), token() ? 'The gateway does not take this token.' : '');
  $('token-forget').hidden = !token();
  box.showModal();
  $('token').focus();
}

function setToken(text) {
  try {
    if (text) sessionStorage.setItem(TOKEN, text);
    else sessionStorage.removeItem(TOKEN);
  } catch {
    // Without storage the gateway asks again.
  }
  $('token').value = '';
  $('token-box').close();
  restart();
}

/** Opens the stream again, as for a new caller. */
function restart() {
  location.reload();
}

// ---------------------------------------------------------------- views

const VIEWS = ['pipelines', 'pipeline', 'nodes', 'messages', 'refused'];

/** Returns the names in the address; a wrong escape is no name. */
function readRoute() {
  const [first = '', second, third] = location.hash.replace(/^#\/?/, '').split('/').map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return '';
    }
  });
  if (first === 'pipelines' && second) return { view: 'pipeline', who: second, unit: third || null };
  return { view: ['nodes', 'messages', 'refused'].includes(first) ? first : 'pipelines', who: null, unit: null };
}

function go() {
  const old = { ...route };
  Object.assign(route, readRoute());
  for (const name of VIEWS) $(`view-${name}`).hidden = name !== route.view;
  for (const link of document.querySelectorAll('nav a')) {
    const isHere = link.dataset.view === route.view || (route.view === 'pipeline' && link.dataset.view === 'pipelines');
    if (isHere) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  const words = { pipelines: 'Pipelines', nodes: 'Nodes', messages: 'Messages', refused: 'Refused' };
  document.title = `${route.who ? line(route.who, 60) : words[route.view]} · Tael`;
  if (route.who !== old.who) {
    Object.assign(view, { runs: [], statuses: [], unit: null, source: '' });
    view.turn += 1;
    output.unit = null;
    openOutput();
    $('raise-box').close();
    put($('action-result'), '');
    put($('runs-note'), '');
    paint('pipeline');
    paint('runs');
    if (route.who) refresh();
  }
  if (route.unit) {
    view.reveal = route.unit !== old.unit;
    showUnit(route.unit);
  }
  paint('unit');
  paint(route.view === 'pipelines' ? 'list' : route.view);
  if (old.view && old.view !== route.view) {
    scrollTo(0, 0);
    $('main').focus({ preventScroll: true });
  }
}

const PAINTERS = {
  links: paintLinks,
  list: paintList,
  pipelines: paintList,
  pipeline: paintPipeline,
  runs: paintRuns,
  unit: paintUnit,
  output: paintOutput,
  nodes: paintNodes,
  messages: paintMessages,
  refused: paintRefused,
};

/** Counts up what is shown, once a second. */
function tick() {
  if (document.hidden) return;
  if (gateway.state === 'away' || network.broker.state === 'away') paint('links');
  if (route.view === 'pipelines') {
    for (const who of list.running) {
      const row = list.rows.get(who);
      const pipeline = network.pipelines.get(who);
      if (row && pipeline && !row.node.hidden) fillNow(row, pipeline);
    }
  }
  if (route.view === 'nodes') paint('nodes');
  if (route.view === 'pipeline' && view.runs.some((run) => run.state === 'running')) {
    paint('runs');
    paint('unit');
  }
}

function listen() {
  addEventListener('hashchange', go);
  addEventListener('online', () => wake?.());
  document.addEventListener('visibilitychange', () => {
    if (!document.hidden && gateway.state === 'away' && !gateway.wantsToken) wake?.();
  });
  $('banner-retry').addEventListener('click', () => wake?.());
  $('search').addEventListener('input', () => {
    list.search = $('search').value.trim().toLowerCase();
    narrow();
  });
  $('search').addEventListener('keydown', (event) => {
    if (event.key !== 'ArrowDown') return;
    event.preventDefault();
    list.names.map((who) => list.rows.get(who)).find((row) => !row.node.hidden)?.name.focus();
  });
  arrows($('list-body'), '.name a');
  $('list-body').addEventListener('focusin', ({ target }) => {
    const found = [...list.rows].find(([, row]) => row.name === target);
    if (found) stopAt(found[0]);
  });
  arrows($('runs'), 'a.unit');
  arrows($('messages-list'), 'summary');
  $('drawing').addEventListener('keydown', moveOnDrawing);
  $('drawing-fit').addEventListener('click', () => setFit(!$('drawing').classList.contains('is-fit')));
  $('filter').addEventListener('input', () => setFilter($('filter').value));
  $('pause').addEventListener('click', () => setPaused(!log.paused));
  $('clear').addEventListener('click', () => {
    Object.assign(log, { all: [], hits: [], fresh: [], rebuild: true, missed: 0, dropped: 0, heard: 0 });
    paint('messages');
  });
  for (const button of document.querySelectorAll('[data-stream]')) {
    button.addEventListener('click', () => {
      output.stream = button.dataset.stream;
      output.chosen = true;
      openOutput();
    });
  }
  $('output').addEventListener('scroll', () => {
    const box = $('output');
    // A person who scrolls up reads: the end waits.
    output.follow = box.scrollHeight - box.scrollTop - box.clientHeight < 24;
    $('output-follow').hidden = output.follow;
  }, { passive: true });
  $('output-follow').addEventListener('click', () => {
    output.follow = true;
    $('output').scrollTop = $('output').scrollHeight;
    $('output-follow').hidden = true;
  });
  $('token-open').addEventListener('click', () => {
    put($('token-error'), '');
    $('token-forget').hidden = !token();
    $('token-box').showModal();
  });
  $('token-close').addEventListener('click', () => $('token-box').close());
  $('token-forget').addEventListener('click', () => setToken(''));
  $('token-form').addEventListener('submit', (event) => {
    event.preventDefault();
    setToken($('token').value.trim());
  });
  $('raise-close').addEventListener('click', () => $('raise-box').close());
  $('raise-form').addEventListener('submit', (event) => {
    event.preventDefault();
    raise();
  });
  addEventListener('keydown', (event) => {
    if (event.key !== '/' || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest?.('input, textarea, dialog')) return;
    const field = { pipelines: 'search', messages: 'filter' }[route.view];
    if (!field) return;
    event.preventDefault();
    $(field).focus();
  });
  let resized = null;
  addEventListener('resize', () => {
    clearTimeout(resized);
    resized = setTimeout(() => { if (route.view === 'pipeline') paint('runs'); }, 100);
  });
  setInterval(tick, 1000);
}

makeSums();
listen();
go();
paint('links');
paint('list');
follow();
