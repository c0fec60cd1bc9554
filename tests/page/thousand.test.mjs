// A thousand pipelines at a real broker and a real gateway, in a real browser.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import net from 'node:net';
import { after, before, test } from 'node:test';
import { Browser, picture, until } from './browser.mjs';
import { Lab } from './lab.mjs';
import { Publisher } from './mqtt.mjs';

const COUNT = 1000;
/** Statuses a second, and for how many seconds. */
const RATE = 20;
const SECONDS = 3;

let browser;
let lab;
let publisher;

before(async () => {
  browser = await Browser.start();
  lab = await Lab.bare();
  publisher = await Publisher.connect(lab.port);
});

after(async () => {
  await publisher?.close();
  await lab?.close();
  await browser?.stop();
});

const place = (i) => `lab/infrastructure/pipelines/p${i}`;
const now = () => Math.floor(Date.now() / 1000);
const sleep = (milliseconds) => new Promise((done) => { setTimeout(done, milliseconds); });

/** Returns the seconds of CPU and the MiB of memory of a process. */
async function spent(pid) {
  const fields = (await readFile(`/proc/${pid}/stat`, 'utf8')).split(') ')[1].split(' ');
  const memory = /VmRSS:\s+(\d+)/.exec(await readFile(`/proc/${pid}/status`, 'utf8'))[1];
  return { cpu: (Number(fields[11]) + Number(fields[12])) / 100, memory: Number(memory) / 1024 };
}

test('a thousand pipelines at a real broker stay usable', async () => {
  for (let i = 0; i < COUNT; i += 1) {
    const topics = [i % 10 ? `${place(i - 1)}/status` : 'lab/in'];
    publisher.publish(`${place(i)}/presence`, { state: 'online', who: `p${i}`, host: `node${i % 40}`, version: '0.1.0', since: now() - 999, trigger_count: 1, triggers: [{ name: 'default', topics, when: ['status=finished'] }] }, true);
    publisher.publish(`${place(i)}/last`, { last: { status: 'finished', return_code: 0, announce: false, time_elapsed: '0:00:01.234567', ts: now() - i }, last_success: now() - i, reason: 'lab/in finished' }, true);
  }
  const address = await lab.gateway('thousand', []);
  const page = await browser.open(address);
  // The broker and the gateway are not optimised.
  await page.waitForFunction((n) => document.querySelectorAll('#list-body .last .s-succeeded').length === n, COUNT, { timeout: 60_000 });
  // Another reader asks for everything, and reads nothing of it.
  const slow = net.connect(Number(new URL(address).port), '127.0.0.1').pause();
  await once(slow, 'connect');
  slow.on('error', () => {});
  slow.write('GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n');
  // Now with everything at once.
  const begun = Date.now();
  await page.reload();
  await until(page, (n) => document.querySelectorAll('#list-body .last .s-succeeded').length === n, COUNT);
  const shown = Date.now() - begun;
  assert.ok(shown < 6000, `${shown} ms until a thousand are shown`);
  const painted = await page.evaluate(() => performance.getEntriesByName('first-contentful-paint')[0].startTime);
  assert.ok(painted < 3000, `${painted} ms until the first paint`);
  await until(page, (n) => document.querySelectorAll('#drawing .node').length === n, COUNT);
  await page.evaluate(() => {
    globalThis.lag = 0;
    let last = performance.now();
    setInterval(() => {
      const time = performance.now();
      globalThis.lag = Math.max(globalThis.lag, time - last - 20);
      last = time;
    }, 20);
  });

  const { pid } = lab.running.get('thousand');
  const before = await spent(pid);
  for (let n = 0; n < RATE * SECONDS; n += 1) {
    const end = { status: 'failed', return_code: 3, announce: true, time_elapsed: '0:00:01.200000', ts: now() };
    const start = { status: 'started', announce: false, reason: 'lab/in finished', ts: now() };
    publisher.publish(`${place(n % 2 ? n - 1 : n)}/status`, n % 2 ? end : start);
    if (n === RATE) {
      const asked = Date.now();
      await page.locator('#search').fill('node39');
      await until(page, () => document.querySelectorAll('#list-body .row:not([hidden])').length === 25);
      const took = Date.now() - asked;
      assert.ok(took < 2000, `${took} ms until the search answers`);
      await page.locator('#search').fill('');
    }
    await sleep(1000 / RATE);
  }
  await until(page, (n) => document.querySelectorAll('#list-body .last .s-failed').length === n, (RATE * SECONDS) / 2);
  const after = await spent(pid);
  const cpu = (after.cpu - before.cpu) / SECONDS;
  assert.ok(cpu < 0.5, `the gateway takes ${cpu} of a CPU`);
  assert.ok(after.memory < 200, `the gateway takes ${after.memory} MiB`);
  slow.destroy();
  const lag = await page.evaluate(() => globalThis.lag);
  assert.ok(lag < 1000, `the page stands still for ${lag} ms`);
  await picture(page, 'real-thousand');
  assert.deepEqual(page.wrong, []);
});
