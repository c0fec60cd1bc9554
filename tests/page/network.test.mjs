// The page of real gateways, in a real browser, on a real network of three pipelines.

import assert from 'node:assert/strict';
import { rm, writeFile } from 'node:fs/promises';
import { after, afterEach, before, test } from 'node:test';
import { Browser, SCHEMES, WIDTHS, barriers, picture, until } from './browser.mjs';
import { Lab, START, TOKEN } from './lab.mjs';

const HOSTILE = '<img src=x onerror="hacked=1"><script>hacked=1</script>';
// What the browser itself says of an answer that a test wants refused.
const REFUSED = /status of (401|403|503)/;

let browser;
let lab;
const pages = [];

before(async () => {
  browser = await Browser.start();
  lab = await Lab.start();
});

after(async () => {
  await lab?.close();
  await browser?.stop();
});

afterEach(async () => {
  const wrong = pages.flatMap((page) => page.wrong);
  for (const page of pages.splice(0)) await page.context().close();
  assert.deepEqual(wrong, []);
});

async function open(address, options = {}) {
  const page = await browser.open(address, options);
  pages.push(page);
  return page;
}

/** Waits until the page shows three pipelines that are online, and the drawing of them. */
async function shown(page) {
  await until(page, () => document.querySelectorAll('#list-body .s-online').length === 3);
  await until(page, () => document.querySelectorAll('#drawing .node').length === 3);
}

const idle = (page) => until(page, () => !document.querySelector('#list-body .is-running'));
const goTo = (page, hash) => page.evaluate((to) => { location.hash = to; }, hash);

test('a run lights up, its output scrolls, and the chain ends without a reload', async () => {
  const page = await open(lab.reader);
  await shown(page);
  await page.evaluate(() => { globalThis.before = true; });
  await lab.begin('S1');
  await until(page, () => document.querySelector('#drawing .node.is-running[data-who="seq"]'));
  await until(page, () => document.querySelector('#list-body .row.is-running .name a')?.textContent === 'seq');
  await picture(page, 'real-running');
  await page.locator('#list-body').getByRole('link', { name: 'seq', exact: true }).click();
  await until(page, () => document.querySelector('#unit-attributes')?.textContent.includes('S1'));
  const lines = () => page.evaluate(() => document.getElementById('output').textContent.split('\n').length);
  await until(page, () => { const box = document.getElementById('output'); return box.scrollTop > 0 && box.scrollHeight - box.scrollTop - box.clientHeight < 24; });
  const first = await lines();
  await until(page, (n) => document.getElementById('output').textContent.split('\n').length > n, first);
  await picture(page, 'real-output');
  await lab.end();
  await until(page, () => document.getElementById('unit-state').textContent === 'succeeded');
  await until(page, () => document.querySelector('#runs .s-succeeded') && document.querySelector('#chart .s-succeeded'));
  await goTo(page, '#/');
  await until(page, () => document.querySelectorAll('#list-body .last .s-succeeded').length === 3);
  await idle(page);
  assert.equal(await page.evaluate(() => globalThis.before), true);
});

test('an edge lights up while the next pipeline runs', async () => {
  const page = await open(lab.reader);
  await shown(page);
  const edges = await page.locator('#drawing .edge').evaluateAll((all) => all.map((edge) => [edge.dataset.from, edge.dataset.to]));
  assert.ok(edges.some(([from, to]) => from === 'seq' && to === 'demux'), JSON.stringify(edges));
  // A short run may begin and end between two frames.
  await page.evaluate(() => {
    globalThis.lit = false;
    const isLit = () => document.querySelector('.edge.is-running[data-from="seq"][data-to="demux"]') !== null;
    new MutationObserver(() => { globalThis.lit ||= isLit(); }).observe(document.getElementById('drawing'), { subtree: true, attributes: true });
  });
  for (let i = 0; i < 20 && !(await page.evaluate(() => globalThis.lit)); i += 1) {
    await lab.begin(`edge-${i}`);
    await until(page, () => document.querySelector('#drawing .node.is-running[data-who="seq"]'));
    await lab.end();
    await until(page, () => !document.querySelector('#drawing .node.is-running'));
  }
  assert.equal(await page.evaluate(() => globalThis.lit), true);
});

test('a run is canceled with a token, and not without', async () => {
  const reader = await open(lab.reader, { ignore: REFUSED });
  await shown(reader);
  await lab.begin('S2');
  await until(reader, () => document.querySelector('#drawing .node.is-running[data-who="seq"]'));
  await goTo(reader, '#/pipelines/seq');
  await until(reader, () => document.getElementById('unit-state').textContent === 'running');
  assert.equal(await reader.locator('#unit-actions button, #actions button').locator('visible=true').count(), 0);
  const unit = (await reader.locator('#heading-unit').textContent()).replace('Run ', '');
  const statuses = await reader.evaluate(async (id) => {
    const post = { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ action: 'cancel', unit: id }) };
    const answers = [await fetch('api/pipelines/seq/control', post), await fetch(`units/${id}`, { method: 'DELETE' })];
    return answers.map(({ status }) => status);
  }, unit);
  assert.deepEqual(statuses, [403, 403]);

  const page = await open(lab.controller, { ignore: REFUSED });
  await page.locator('#token').fill('not-the-right-token');
  await page.getByRole('button', { name: 'Use it' }).click();
  await until(page, () => document.getElementById('token-error').textContent.includes('does not take'));
  assert.equal(await page.locator('#list-body .row').count(), 0);
  await page.locator('#token').fill(TOKEN);
  await page.getByRole('button', { name: 'Use it' }).click();
  await shown(page);
  await goTo(page, `#/pipelines/seq/${unit}`);
  await until(page, () => document.getElementById('unit-state').textContent === 'running');
  const cancel = page.locator('#unit-actions button');
  await cancel.click();
  await picture(page, 'real-cancel');
  await cancel.click();
  await until(page, () => document.getElementById('action-result').textContent === 'cancel: done');
  await until(page, () => document.getElementById('unit-state').textContent === 'canceled');
  await until(reader, () => document.getElementById('unit-state').textContent === 'canceled');

  await page.getByRole('button', { name: 'Pause' }).click();
  await until(page, () => document.getElementById('pipeline-state').textContent === 'paused');
  await page.getByRole('button', { name: 'Resume' }).click();
  await until(page, () => document.getElementById('pipeline-state').textContent === 'online');
  await lab.end();
});

test('with a token a person raises, retries, pauses and resumes, and not without', async () => {
  await lab.end();
  await writeFile(lab.bad, '');
  const actions = ['raise', 'retry', 'cancel', 'pause', 'resume'];
  for (const [address, status] of [[lab.reader, 403], [lab.controller, 401]]) {
    const page = await open(address, { ignore: REFUSED });
    const statuses = await page.evaluate((all) => Promise.all(all.map(async (action) => {
      const post = { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ action }) };
      return (await fetch('api/pipelines/seq/control', post)).status;
    })), actions);
    assert.deepEqual(statuses, actions.map(() => status), address);
  }
  const page = await open(lab.controller, { ignore: REFUSED });
  await page.locator('#token').fill(TOKEN);
  await page.getByRole('button', { name: 'Use it' }).click();
  await shown(page);
  const first = await page.evaluate(() => document.querySelector('#list-body .row:nth-child(2) .last').textContent);
  assert.doesNotMatch(first, /failed/);
  await goTo(page, '#/pipelines/seq');
  // A run begins, is shown, fails, and says why.
  await page.getByRole('button', { name: 'Raise', exact: true }).click();
  await page.getByRole('button', { name: 'Raise it' }).click();
  await until(page, () => document.getElementById('action-result').textContent === 'raise: done');
  await until(page, () => document.getElementById('unit-facts').textContent.includes('manually raised') && document.getElementById('unit-state').textContent === 'failed');
  await until(page, () => document.getElementById('unit-facts').textContent.includes('Code3'));
  await goTo(page, '#/');
  // Two clicks from the list to what the command has said.
  await until(page, () => document.querySelector('#sums .f-failed b').textContent === '1');
  await page.locator('#sums .f-failed').click();
  assert.equal(await page.locator('#list-body .row:not([hidden])').count(), 1);
  await page.locator('#list-body').getByRole('link', { name: 'seq', exact: true }).click();
  await until(page, () => document.getElementById('unit-state').textContent === 'failed');
  await page.locator('[data-stream="stderr"]').click();
  await until(page, () => document.getElementById('output').textContent === 'no space left\n');
  await picture(page, 'real-failed');
  assert.deepEqual(await barriers(page), []);
  const failed = await page.locator('#heading-unit').textContent();
  await rm(lab.bad);
  await page.getByRole('button', { name: 'Retry this run' }).click();
  await until(page, () => document.getElementById('action-result').textContent === 'retry: done');
  await until(page, (old) => document.getElementById('heading-unit').textContent !== old && document.getElementById('unit-state').textContent === 'succeeded', failed);
  assert.match(await page.locator('#unit-facts').textContent(), new RegExp(`Retry of${failed.replace('Run ', '')}`));
  // It was retried, and nothing has failed since.
  await page.getByRole('button', { name: 'Retry last failed' }).click();
  await until(page, () => /^retry: unit .* was retried/.test(document.getElementById('action-result').textContent));
  // A paused pipeline lets runs wait.
  await page.getByRole('button', { name: 'Pause' }).click();
  await until(page, () => document.getElementById('pipeline-state').textContent === 'paused');
  await lab.run('message', '--port', lab.port, '-t', START, '--attr', 'status=finished', '--attr', 'sample=waits');
  await until(page, () => document.getElementById('pipeline-facts').textContent.includes('Waiting1'));
  await until(page, () => document.querySelector('#runs tbody tr')?.textContent.includes('SAMPLE=waits'));
  await page.getByRole('button', { name: 'Resume' }).click();
  await until(page, () => document.getElementById('pipeline-state').textContent === 'online');
  await until(page, () => document.querySelector('#runs tbody tr .s-succeeded') && document.getElementById('pipeline-facts').textContent.includes('Waiting0'));
  await goTo(page, '#/');
  await idle(page);
});

test('a trigger that requires an attribute is raised with it', async () => {
  const words = ['client', '--who', 'strict', '--root', 'lab', '--port', lab.port, '-t', 'lab/strict', '-c', 'echo "sample $SAMPLE"', '--envreq', 'sample', '--log', 'none'];
  lab.spawn('strict', words);
  try {
    const page = await open(lab.controller, { ignore: REFUSED });
    await page.locator('#token').fill(TOKEN);
    await page.getByRole('button', { name: 'Use it' }).click();
    await until(page, () => document.querySelector('#list-body [href="#/pipelines/strict"]'));
    await goTo(page, '#/pipelines/strict');
    await until(page, () => document.getElementById('pipeline-state').textContent === 'online');
    const raise = async (text) => {
      await page.getByRole('button', { name: 'Raise', exact: true }).click();
      await page.locator('#raise-attributes').fill(text);
      await page.getByRole('button', { name: 'Raise it' }).click();
    };
    await raise('');
    await until(page, () => /raise: .*sample/.test(document.getElementById('action-result').textContent));
    await raise('sample=S = 7');
    await until(page, () => document.getElementById('action-result').textContent === 'raise: done');
    await until(page, () => document.getElementById('unit-state').textContent === 'succeeded' && document.getElementById('output').textContent === 'sample S = 7\n');
    await picture(page, 'real-raised');
  } finally {
    await lab.stop('strict');
    await lab.run('forget', 'strict', '--root', 'lab', '--port', lab.port);
  }
});

test('payloads of a sender stay text', async () => {
  const page = await open(lab.reader);
  await shown(page);
  await lab.end();
  await goTo(page, '#/messages');
  await lab.run('message', '--port', lab.port, '-t', 'lab/hostile', '--attr', `note=${HOSTILE}`, '--attr', 'moved=a\u202eb');
  await until(page, () => document.getElementById('messages-list').textContent.includes('<img src=x onerror='));
  await page.locator('summary', { hasText: 'lab/hostile' }).first().click();
  await picture(page, 'real-hostile');
  await goTo(page, '#/');
  await lab.run('control', '--root', 'lab', '--port', lab.port, 'seq', 'raise', '--attr', `sample=${HOSTILE}`);
  await until(page, () => document.querySelectorAll('#list-body .last .s-succeeded').length === 3);
  await idle(page);
  await goTo(page, '#/pipelines/seq');
  await until(page, () => document.getElementById('unit-attributes').textContent.includes('<img src=x onerror='));
  assert.equal(await page.evaluate(() => globalThis.hacked), undefined);
  assert.equal(await page.locator('img, main script, main style, iframe').count(), 0);
});

for (const width of WIDTHS) {
  // The other two are tried in page.test.mjs.
  const scheme = SCHEMES[width < 600 ? 1 : 0];
  test(`at ${width} pixels, ${scheme}, all can use it`, async () => {
    const page = await open(lab.reader, { width, scheme });
    await shown(page);
    for (const view of ['', 'pipelines/seq', 'nodes', 'messages', 'refused']) {
      await goTo(page, `#/${view}`);
      if (view === 'pipelines/seq') await until(page, () => document.querySelector('#chart svg'));
      assert.deepEqual(await barriers(page), [], view);
      assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${view} is too wide`);
      await picture(page, `real-${view.split('/')[0] || 'network'}-${width}-${scheme}`);
    }
  });
}

test('what the gateway refuses is shown', async () => {
  const page = await open(lab.reader, { ignore: REFUSED });
  await shown(page);
  await goTo(page, '#/refused');
  await page.evaluate(() => fetch('t/lab/infrastructure/pipelines/seq/control', { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{}' }));
  await until(page, () => document.querySelector('#refused tbody')?.textContent.includes('/t/lab/infrastructure/pipelines/seq/control'));
});

test('what the page itself asks for is not refused', async () => {
  const page = await open(`${lab.controller}#/pipelines/nope/01KBMJ2Y7R8QK4ZT9V6W5X3D01`, { ignore: /status of 40[14]/ });
  const answers = [];
  page.on('response', (response) => answers.push(response.status()));
  await page.locator('#token').fill(TOKEN);
  await page.getByRole('button', { name: 'Use it' }).click();
  await until(page, () => document.getElementById('runs-note').textContent.includes('no such pipeline'));
  await until(page, () => document.getElementById('output-note').textContent === 'not on this host');
  assert.ok(answers.includes(404));
  const known = await page.evaluate(async (token) => (await (await fetch('api/network', { headers: { authorization: `Bearer ${token}` } })).json()).refused.filter(({ path, status }) => /nope|01KBMJ2Y7R8QK4ZT9V6W5X3D01/.test(path) || (path.startsWith('/units/') && status === 401)), TOKEN);
  assert.deepEqual(known, []);
});

test('a client that is killed keeps its edge, and so does each while the broker stops', async () => {
  const page = await open(lab.reader);
  await shown(page);
  const edges = () => page.locator('#drawing .edge').count();
  const before = await edges();
  const zip = lab.words.get('zip');
  await lab.stop('zip', 'SIGKILL');
  await until(page, () => document.querySelector('#list-body .s-lost'));
  await until(page, () => document.querySelector('#drawing .edge[data-from="demux"][data-to="zip"]'));
  lab.spawn('zip', zip);
  await shown(page);
  await lab.stop('broker', 'SIGTERM');
  await page.locator('#banner').waitFor();
  await until(page, () => document.querySelector('#drawing [data-who="zip"]').getAttribute('aria-label').startsWith('zip: last known: '));
  // A drawing without edges would come after that.
  await page.reload();
  await until(page, () => document.querySelectorAll('#drawing .node').length === 3);
  assert.equal(await edges(), before);
  await picture(page, 'real-stopped');
  await lab.startBroker();
  await page.locator('#banner').waitFor({ state: 'hidden', timeout: 40_000 });
  await shown(page);
  assert.equal(await edges(), before);
});

test('it says since when the broker is away, and goes on when it is back', async () => {
  const page = await open(lab.reader);
  await shown(page);
  await lab.stop('broker', 'SIGKILL');
  await page.locator('#banner').waitFor();
  assert.match(await page.locator('#banner').textContent(), /broker is away since .*\d\d:\d\d:\d\d/);
  await picture(page, 'real-away');
  await lab.startBroker();
  await page.locator('#banner').waitFor({ state: 'hidden', timeout: 40_000 });
  await shown(page);
  await lab.begin('S9');
  await until(page, () => document.querySelector('#drawing .node.is-running[data-who="seq"]'));
  await lab.end();
  await idle(page);
});
