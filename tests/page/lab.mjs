// A real network on free ports of this host: a broker, three pipelines in a chain, and gateways.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { access, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';

const TAEL = resolve(process.env.TAEL_BIN ?? 'target/debug', 'tael');

/** Maximum milliseconds until a program does what is expected. */
const LIMIT = 20_000;

/** Token of the gateway that lets callers control. */
export const TOKEN = 'a-token-of-the-lab';

/** Topic that starts the chain. */
export const START = 'lab/in';

const freePort = async () => {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return port;
};

/** Waits until `test` returns something true. */
export async function eventually(what, test) {
  const end = Date.now() + LIMIT;
  for (;;) {
    const value = await test();
    if (value) return value;
    if (Date.now() > end) throw new Error(`not within ${LIMIT} ms: ${what}`);
    await new Promise((done) => { setTimeout(done, 30); });
  }
}

const answers = (port) => new Promise((done) => {
  const socket = net.connect(port, '127.0.0.1', () => {
    socket.destroy();
    done(true);
  });
  socket.on('error', () => done(false));
});

export class Lab {
  /** Starts a broker alone. */
  static async bare() {
    const lab = new Lab();
    lab.folder = await mkdtemp(join(tmpdir(), 'tael-lab-'));
    lab.go = join(lab.folder, 'go');
    // While it exists, runs of the first pipeline fail.
    lab.bad = join(lab.folder, 'bad');
    await mkdir(join(lab.folder, 'state'));
    await writeFile(join(lab.folder, 'tokens'), `${TOKEN}\n`, { mode: 0o600 });
    lab.running = new Map();
    // How each program was started.
    lab.words = new Map();
    lab.port = await freePort();
    await lab.startBroker();
    return lab;
  }

  static async start() {
    const lab = await Lab.bare();
    // The first prints until the test lets it end.
    const wait = `i=0; while [ ! -e ${lab.go} ]; do i=$((i + 1)); echo "line $i"; sleep 0.02; done; if [ -e ${lab.bad} ]; then echo "no space left" >&2; exit 3; fi`;
    const status = (who) => `lab/infrastructure/pipelines/${who}/status`;
    for (const [who, topic, command] of [['seq', START, wait], ['demux', status('seq'), 'echo demultiplexed'], ['zip', status('demux'), 'echo zipped']]) {
      lab.spawn(who, ['client', '--who', who, '--root', 'lab', '--port', lab.port, '-t', topic, '-c', command, '--payload-passthrough', 'sample', '--log', 'none']);
    }
    lab.reader = await lab.gateway('reader', []);
    lab.controller = await lab.gateway('controller', ['--control', '--token-file', join(lab.folder, 'tokens')]);
    return lab;
  }

  /** Starts a program that runs until the lab ends. */
  spawn(name, words) {
    const env = { PATH: process.env.PATH, HOME: this.folder, STATE_DIRECTORY: join(this.folder, 'state') };
    const child = spawn(TAEL, words.map(String), { env, stdio: ['ignore', 'ignore', 'inherit'] });
    this.running.set(name, child);
    this.words.set(name, words);
    return child;
  }

  async startBroker() {
    this.spawn('broker', ['broker', '--listen', `127.0.0.1:${this.port}`, '--data', join(this.folder, 'broker'), '--log', 'none']);
    await eventually('the broker listens', () => answers(this.port));
  }

  /** Starts a gateway, and returns the address of its page. */
  async gateway(name, words) {
    const port = await freePort();
    this.spawn(name, ['gateway', '--root', 'lab', '--port', this.port, '--listen', `127.0.0.1:${port}`, '--rate', '0', ...words, '--log', 'none']);
    await eventually('the gateway listens', () => answers(port));
    return `http://127.0.0.1:${port}/`;
  }

  /** Runs a command of tael to its end. */
  async run(...words) {
    const child = this.spawn('command', words);
    const [code] = await once(child, 'exit');
    this.running.delete('command');
    if (code !== 0) throw new Error(`tael ${words.join(' ')} ends with ${code}`);
  }

  /** Starts a run of the first pipeline. */
  async begin(sample) {
    await rm(this.go, { force: true });
    await this.run('message', '--port', this.port, '-t', START, '--attr', 'status=finished', '--attr', `sample=${sample}`);
  }

  /** Lets the runs of the first pipeline end. */
  async end() {
    await writeFile(this.go, '');
    await access(this.go);
  }

  /** Ends a program. */
  async stop(name, signal = 'SIGTERM') {
    const child = this.running.get(name);
    this.running.delete(name);
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill(signal);
    await once(child, 'exit');
  }

  async close() {
    await this.end();
    for (const name of [...this.running.keys()].reverse()) await this.stop(name);
    await rm(this.folder, { recursive: true, force: true });
  }
}
