// A gateway as the page knows it, that says and counts what a test wants. It serves the page's own files.

import http from 'node:http';
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';

const FILES = fileURLToPath(new URL('../../src/tools/gateway/page/', import.meta.url));
const STATIC = {
  '/': ['index.html', 'text/html; charset=utf-8'],
  '/page.css': ['page.css', 'text/css; charset=utf-8'],
  '/page.js': ['page.js', 'text/javascript; charset=utf-8'],
  '/icon.svg': ['icon.svg', 'image/svg+xml'],
};
const POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/** Seconds since 1970. */
export const now = () => Date.now() / 1000;

/** A pipeline that is online and idle. */
export function pipeline(who, more = {}) {
  return { who, host: 'host', state: 'online', version: '0.1.0', since: now() - 60, until: null, running: [], waiting: 0, last: null, triggers: [], local: true, ...more };
}

/** Text that must not act as HTML or SVG. */
const escaped = (text) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

export class Fake {
  constructor() {
    this.pipelines = new Map();
    this.edges = [];
    this.runs = [];
    this.source = 'ledger';
    this.reply = { ok: true };
    this.statuses = [];
    this.units = new Map();
    this.beacons = [];
    this.nodes = [];
    this.refused = [];
    this.broker = { state: 'connected', since: now() };
    /** Token that is wanted, and bodies of the actions that were asked with it. */
    this.token = null;
    this.open = false;
    this.actions = [];
    this.streams = new Set();
    this.outputs = new Set();
    this.connects = 0;
    /** What stands in the drawing beside its nodes and edges, and at its head. */
    this.extra = '';
    this.attributes = '';
  }

  network(control) {
    const { broker, beacons, nodes, refused, edges } = this;
    return { root: 'lab', broker, control, version: '0.1.0', host: 'gateway', pipelines: [...this.pipelines.values()], beacons, nodes, refused, edges, truncated: false };
  }

  drawing() {
    const names = [...this.pipelines.keys()].slice(0, 200);
    const place = (i) => [20 + 200 * (i % 6), 20 + 70 * Math.floor(i / 6)];
    const edges = this.edges.map(({ from, to }) => {
      const [x, y] = place(names.indexOf(from));
      const [u, v] = place(names.indexOf(to));
      return `<g class="edge" data-from="${escaped(from)}" data-to="${escaped(to)}"><path d="M${x + 140} ${y + 20}L${u - 8} ${v + 20}"/><polygon points="${u - 8},${v + 15} ${u},${v + 20} ${u - 8},${v + 25}"/></g>`;
    });
    const nodes = names.map((who, i) => {
      const [x, y] = place(i);
      return `<g class="node" data-who="${escaped(who)}"><title>${escaped(who)}</title><rect x="${x}" y="${y}" width="140" height="40" rx="6"/><text x="${x + 70}" y="${y + 25}" text-anchor="middle" font-size="13">${escaped(who.length > 16 ? `${who.slice(0, 15)}…` : who)}</text></g>`;
    });
    const height = 40 + 70 * Math.ceil(names.length / 6);
    return `<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 1220 ${height}"${this.attributes}>${this.extra}${edges.join('')}${nodes.join('')}</svg>`;
  }

  /** Sends an event to every page. */
  send(event, value) {
    for (const stream of this.streams) stream.write(`event: ${event}\ndata: ${JSON.stringify(value)}\n\n`);
  }

  /** Changes a pipeline, and says that. */
  change(who, more) {
    const changed = { ...this.pipelines.get(who), ...more };
    this.pipelines.set(who, changed);
    this.send('pipeline', changed);
  }

  /** Sends output to every page that reads it. */
  output(text) {
    for (const reader of this.outputs) {
      const from = reader.at;
      reader.at += Buffer.byteLength(text);
      reader.answer.write(`event: output\nid: ${reader.at}\ndata: ${JSON.stringify({ from, text })}\n\n`);
    }
  }

  /** Listens on `port`, and returns its address. */
  async listen(port = 0) {
    this.server = http.createServer((request, answer) => {
      this.answer(request, answer).catch((error) => {
        answer.destroy(error);
      });
    });
    await new Promise((resolve) => { this.server.listen(port, '127.0.0.1', resolve); });
    this.port = this.server.address().port;
    return `http://127.0.0.1:${this.port}/`;
  }

  /** Ends the gateway with all its connections. */
  async close() {
    this.server.closeAllConnections();
    await new Promise((resolve) => { this.server.close(resolve); });
    this.streams.clear();
    this.outputs.clear();
  }

  async answer(request, answer) {
    const path = decodeURIComponent(new URL(request.url, 'http://fake').pathname);
    const json = (value, status = 200) => {
      answer.writeHead(status, { 'content-type': 'application/json' });
      answer.end(JSON.stringify(value));
    };
    const stream = () => answer.writeHead(200, { 'content-type': 'text/event-stream' });
    if (path in STATIC) {
      const [file, type] = STATIC[path];
      answer.writeHead(200, { 'content-type': type, 'content-security-policy': POLICY, 'x-content-type-options': 'nosniff' });
      return answer.end(await readFile(FILES + file));
    }
    const given = request.headers.authorization === `Bearer ${this.token}`;
    if (this.token !== null && !given && !this.open) return json({ error: 'a token is needed' }, 401);
    if (path === '/api/network') return json(this.network(true));
    if (path === '/api/graph.svg') {
      answer.writeHead(200, { 'content-type': 'image/svg+xml' });
      return answer.end(this.drawing());
    }
    if (path === '/api/stream') {
      stream();
      this.connects += 1;
      answer.write(`: alive\n\nevent: network\nid: 1\ndata: ${JSON.stringify(this.network(true))}\n\n`);
      this.streams.add(answer);
      return answer.on('close', () => this.streams.delete(answer));
    }
    if (/^\/api\/pipelines\/[^/]*\/runs$/.test(path)) return json({ source: this.source, runs: this.runs });
    if (/^\/api\/pipelines\/[^/]*\/statuses$/.test(path)) return json({ source: this.source, statuses: this.statuses });
    if (/^\/api\/pipelines\/[^/]*\/control$/.test(path) && request.method === 'POST') {
      let body = '';
      for await (const piece of request) body += piece;
      if (this.token === null || !given) return json({ error: 'control needs a token' }, 403);
      this.actions.push(JSON.parse(body));
      return json({ reply: this.reply });
    }
    if (/^\/units\/[^/]*\/std(out|err)$/.test(path)) {
      stream();
      const reader = { path, answer, at: Number(new URL(request.url, 'http://fake').searchParams.get('from')) };
      this.outputs.add(reader);
      answer.write(': alive\n\n');
      return answer.on('close', () => this.outputs.delete(reader));
    }
    const unit = /^\/units\/([^/]*)$/.exec(path)?.[1];
    if (unit && this.units.has(unit)) return json(this.units.get(unit));
    return json({ error: 'there is no such path' }, 404);
  }
}
