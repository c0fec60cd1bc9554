// The page alone, in a real browser, against a gateway that plays whatever a test needs.

import assert from 'node:assert/strict';
import { after, afterEach, before, beforeEach, test } from 'node:test';
import { Browser, SCHEMES, WIDTHS, barriers, picture, until } from './browser.mjs';
import { Fake, now, pipeline } from './fake.mjs';

const HOSTILE = '<img src=x onerror="hacked=1"><script>hacked=1</script><a href="javascript:hacked=1">x</a>';
const TOPIC = 'lab/infrastructure/pipelines/seq/status';
const UNITS = ['01KBMJ2Y7R8QK4ZT9V6W5X3D01', '01KBMJ2Y7R8QK4ZT9V6W5X3D02', '01KBMJ2Y7R8QK4ZT9V6W5X3D03'];
// What the browser itself says of an answer that a test wants refused, or of a gateway that a test ends.
const REFUSED = /status of 40[13]/;
const ENDED = /ERR_(CONNECTION_REFUSED|INCOMPLETE_CHUNKED_ENCODING|CONNECTION_RESET|EMPTY_RESPONSE)/;

let browser;
let fake;
let address;
const pages = [];

before(async () => { browser = await Browser.start(); });
after(async () => { await browser.stop(); });

beforeEach(async () => {
  fake = new Fake();
  for (const who of ['seq', 'demux', 'zip']) fake.pipelines.set(who, pipeline(who));
  fake.edges = [{ from: 'seq', to: 'demux', topic: TOPIC }, { from: 'demux', to: 'zip', topic: 'lab/infrastructure/pipelines/demux/status' }];
  fake.runs = [
    { unit: UNITS[0], state: 'running', reason: `${TOPIC} finished`, started: now() - 3, ended: null, seconds: null, code: null, attempt: 1 },
    { unit: UNITS[1], state: 'failed', reason: `${TOPIC} finished`, started: now() - 60, ended: now() - 50, seconds: 10, code: 2, attempt: 2 },
    { unit: UNITS[2], state: 'succeeded', reason: `${TOPIC} finished`, started: now() - 90, ended: now() - 85, seconds: 5, code: 0, attempt: 1 },
  ];
  fake.statuses = [{ status: 'started', ts: now() - 3, reason: `${TOPIC} finished` }, { status: 'failed', return_code: 2, ts: 1, time_elapsed: '0:00:10.000000' }, { status: 'failed', return_code: 2, ts: 1, time_elapsed: '0:00:10.000000' }];
  for (const run of fake.runs) fake.units.set(run.unit, { ...run, attributes: { sample: 'S1' } });
  fake.beacons = [{ topic: 'lab/test/beacon/status', ts: now() - 5, fresh: true }, { topic: 'lab/hall/beacon/status', ts: now() - 9000, fresh: false }];
  fake.nodes = [{ node: 'n1', state: 'fresh', age: 12, host: 'h1' }, { node: 'n2', state: 'lost', age: null, host: 'h2' }];
  fake.refused = [{ ts: now(), path: '/t/$SYS/x', status: 403, cause: 'the topic is not allowed', peer: '127.0.0.1' }];
  address = await fake.listen();
});

afterEach(async () => {
  const wrong = pages.flatMap((page) => page.wrong);
  for (const page of pages.splice(0)) await page.context().close();
  await fake.close();
  assert.deepEqual(wrong, []);
});

async function open(view = '', options = {}) {
  const page = await browser.open(address + view, options);
  pages.push(page);
  return page;
}

const row = (page, who) => page.locator('#list-body .row', { has: page.getByRole('link', { name: who, exact: true }) });

/** Waits until every message that was sent before has been taken: a pipeline shows that. */
async function settle(page) {
  fake.change('sentinel', pipeline('sentinel'));
  await until(page, () => document.querySelector('#list-body [href="#/pipelines/sentinel"]'));
}

test('a run lights up and ends without a reload', async () => {
  const page = await open();
  await until(page, () => document.querySelectorAll('#drawing .node').length === 3);
  await page.evaluate(() => { globalThis.before = true; });
  fake.change('demux', { running: [{ unit: UNITS[0], reason: `${TOPIC} finished`, started: now() }] });
  await until(page, () => document.querySelector('.node.is-running[data-who="demux"]'));
  assert.match(await row(page, 'demux').textContent(), /running \d+ s/);
  await until(page, () => document.querySelector('.edge.is-running[data-from="seq"][data-to="demux"]'));
  assert.equal(await page.locator('.edge.is-running').count(), 1);
  await picture(page, 'running');
  fake.change('demux', { running: [], last: { status: 'failed', return_code: 3, ts: now(), time_elapsed: '0:00:01.500000', reason: 'x' } });
  await until(page, () => !document.querySelector('.is-running'));
  assert.match(await row(page, 'demux').textContent(), /failed \(3\).*1\.5 s/);
  await until(page, () => document.getElementById('said').textContent.includes('A run of demux has failed'));
  assert.equal(await page.evaluate(() => globalThis.before), true);
});

test('a run that is shorter than a frame is seen', async () => {
  const page = await open();
  await until(page, () => document.querySelectorAll('#drawing .node').length === 3);
  await page.evaluate(() => {
    globalThis.seen = new Set();
    new MutationObserver(() => {
      for (const each of document.querySelectorAll('.is-running')) globalThis.seen.add(each.dataset.who ?? each.dataset.to ?? each.querySelector('.name')?.textContent);
    }).observe(document.querySelector('main'), { subtree: true, attributes: true });
  });
  fake.change('demux', { running: [{ unit: UNITS[0], reason: `${TOPIC} finished`, started: now() }] });
  fake.change('demux', { running: [], last: { status: 'finished', return_code: 0, ts: Math.floor(now()), time_elapsed: '0:00:00.001000', reason: 'x' } });
  await until(page, () => globalThis.seen.has('demux') && !document.querySelector('.is-running'));
  assert.deepEqual(await page.evaluate(() => [...globalThis.seen]), ['demux']);
  assert.match(await row(page, 'demux').textContent(), /succeeded.*1 ms/);
});

test('an edge from a topic outside lights up too, and no other', async () => {
  const edge = (topic) => `<g class="edge silent" data-to="seq"><title>${topic} → seq</title><path d="M0 9L20 9"/></g>`;
  fake.extra = edge('lab/+/in') + edge('lab/other');
  const page = await open();
  await until(page, () => document.querySelectorAll('#drawing .node').length === 3);
  fake.change('seq', { running: [{ unit: UNITS[0], reason: 'lab/x/in finished', started: now() }] });
  await until(page, () => document.querySelector('.edge.is-running'));
  assert.deepEqual(await page.locator('.edge.is-running').evaluateAll((edges) => edges.map((e) => [e.getAttribute('class'), e.textContent])), [['edge silent is-running', 'lab/+/in → seq']]);
});

test('a run raised by hand lights no edge', async () => {
  const page = await open();
  await until(page, () => document.querySelectorAll('#drawing .node').length === 3);
  fake.change('demux', { running: [{ unit: UNITS[0], reason: 'manually raised by control message', started: now() }] });
  await until(page, () => document.querySelector('.node.is-running[data-who="demux"]'));
  assert.equal(await page.locator('.edge.is-running').count(), 0);
});

test('live output scrolls unless a person has scrolled up, and has a bound', async () => {
  const page = await open('#/pipelines/demux');
  await until(page, () => document.getElementById('output-note').textContent === 'live');
  while (!fake.outputs.size) await new Promise((resolve) => { setTimeout(resolve, 10); });
  fake.output('first\n'.repeat(200));
  const gap = () => page.evaluate(() => { const box = document.getElementById('output'); return box.scrollHeight - box.scrollTop - box.clientHeight; });
  await until(page, () => { const box = document.getElementById('output'); return box.textContent.includes('first') && box.scrollTop > 0; });
  assert.ok(await gap() < 24);
  await page.evaluate(() => { document.getElementById('output').scrollTop = 0; });
  await page.locator('#output-follow').waitFor();
  fake.output('second\n'.repeat(200));
  await until(page, () => document.getElementById('output').textContent.includes('second'));
  assert.equal(await page.evaluate(() => document.getElementById('output').scrollTop), 0);
  await page.locator('#output-follow').click();
  assert.ok(await gap() < 24);
  for (let i = 0; i < 30; i += 1) fake.output(`${'x'.repeat(99)}\n`.repeat(1000));
  fake.output('the end\n');
  await until(page, () => document.getElementById('output').textContent.endsWith('the end\n'));
  assert.equal(await page.evaluate(() => document.getElementById('output').textContent.length), 1024 * 1024);
  assert.match(await page.locator('#output-note').textContent(), /only the end/);
  // A stream that breaks goes on where it was.
  const [reader] = fake.outputs;
  fake.outputs.clear();
  reader.answer.end();
  while (!fake.outputs.size) await new Promise((resolve) => { setTimeout(resolve, 10); });
  assert.equal([...fake.outputs][0].at, reader.at);
});

test('the run that is shown is the newest, until a person chooses one', async () => {
  const page = await open('#/pipelines/demux');
  await until(page, () => document.getElementById('heading-unit').textContent.endsWith('D01'));
  const begin = (unit) => {
    for (const run of fake.runs) if (run.state === 'running') Object.assign(run, { state: 'succeeded', ended: now(), seconds: 1, code: 0 });
    const run = { ...fake.runs.at(-1), unit, state: 'running', started: now(), ended: null, seconds: null, code: null };
    fake.runs.unshift(run);
    fake.units.set(unit, run);
    fake.change('demux', { running: [{ unit, reason: 'x', started: now() }] });
  };
  begin('01KBMJ2Y7R8QK4ZT9V6W5X3D04');
  await until(page, () => document.getElementById('heading-unit').textContent.endsWith('D04'));
  await page.locator('#runs a.unit').nth(2).click();
  await until(page, () => document.getElementById('heading-unit').textContent.endsWith('D02'));
  begin('01KBMJ2Y7R8QK4ZT9V6W5X3D05');
  await until(page, () => document.querySelectorAll('#runs tbody tr').length === 5);
  assert.match(await page.locator('#heading-unit').textContent(), /D02$/);
});

test('a failed run says why, and is tried again', async () => {
  fake.token = 'a-token-of-the-lab';
  fake.open = true;
  fake.reply = { ok: true, unit: UNITS[0] };
  const page = await open('#/pipelines/demux', { width: 360 });
  await until(page, () => document.querySelectorAll('#runs tbody tr').length === 3);
  await page.evaluate((token) => sessionStorage.setItem('tael-token', token), fake.token);
  await page.locator('#runs a.unit').nth(1).click();
  // It comes into view, with what the command has said of it.
  await until(page, () => document.getElementById('heading-unit').textContent.endsWith('D02') && document.getElementById('unit-card').getBoundingClientRect().top < 200);
  assert.equal(await page.locator('[data-stream="stderr"]').getAttribute('aria-pressed'), 'true');
  while (![...fake.outputs].some(({ path }) => path.endsWith('D02/stderr'))) await new Promise((resolve) => { setTimeout(resolve, 10); });
  for (const reader of fake.outputs) if (reader.path.endsWith('D02/stderr')) reader.answer.write('event: end\ndata: {"state":"failed","code":2}\n\n');
  // It is empty, and the other may not be.
  await until(page, () => document.querySelector('[data-stream="stdout"]').getAttribute('aria-pressed') === 'true');
  await page.getByRole('button', { name: 'Retry this run' }).click();
  // The new run is shown.
  await until(page, () => document.getElementById('heading-unit').textContent.endsWith('D01'));
  assert.deepEqual(fake.actions, [{ action: 'retry', unit: UNITS[1] }]);
});

test('of several triggers one is raised', async () => {
  fake.token = 'a-token-of-the-lab';
  fake.pipelines.set('demux', pipeline('demux', { triggers: [{ name: 'day', topics: ['lab/a'] }, { name: HOSTILE, topics: ['lab/b'] }] }));
  fake.open = true;
  const page = await open('#/pipelines/demux', { ignore: REFUSED });
  await page.evaluate((token) => sessionStorage.setItem('tael-token', token), fake.token);
  await page.getByLabel('Trigger to raise').selectOption({ index: 1 });
  // It stays chosen while the pipeline changes.
  fake.change('demux', { waiting: 3 });
  await until(page, () => document.getElementById('pipeline-facts').textContent.includes('Waiting3'));
  assert.deepEqual(await barriers(page), []);
  await page.getByRole('button', { name: 'Raise' }).click();
  await page.getByRole('button', { name: 'Raise it' }).click();
  await until(page, () => document.getElementById('action-result').textContent === 'raise: done');
  assert.deepEqual(fake.actions, [{ action: 'raise', trigger: HOSTILE }]);
});

test('the attributes that a trigger requires are offered', async () => {
  fake.token = 'a-token-of-the-lab';
  const odd = ['a\\u{202e}', 'b=c', 'trigger', 'cut…', 7];
  fake.pipelines.set('demux', pipeline('demux', { triggers: [{ name: 'day', topics: [] }, { name: 'night', topics: [], requires: ['sample', ...odd, 'lane'] }] }));
  fake.open = true;
  const page = await open('#/pipelines/demux', { ignore: REFUSED });
  await page.evaluate((token) => sessionStorage.setItem('tael-token', token), fake.token);
  const box = page.getByLabel('Attributes, one NAME=VALUE a line');
  const ask = () => page.getByRole('button', { name: 'Raise', exact: true }).click();
  await ask();
  assert.equal(await box.inputValue(), '');
  await page.keyboard.press('Escape');
  await page.getByLabel('Trigger to raise').selectOption({ index: 1 });
  await ask();
  assert.equal(await box.inputValue(), 'sample=\nlane=');
  assert.equal(await page.locator('#raise-trigger').textContent(), 'Trigger night. Required: sample, lane.');
  assert.deepEqual(await barriers(page), []);
  // A person only types the value.
  await page.keyboard.type('S1');
  await page.getByRole('button', { name: 'Raise it' }).click();
  await until(page, () => document.getElementById('raise-error').textContent === 'Line 2: lane needs a value.');
  assert.deepEqual(fake.actions, []);
  await box.fill('sample=S1\nlane=2\nempty=');
  await page.getByRole('button', { name: 'Raise it' }).click();
  await until(page, () => document.getElementById('action-result').textContent === 'raise: done');
  assert.deepEqual(fake.actions, [{ action: 'raise', trigger: 'night', attributes: { sample: 'S1', lane: '2', empty: '' } }]);
});

for (const [i, width] of WIDTHS.entries()) {
  test(`a run is raised with attributes at ${width} pixels`, async () => {
    fake.token = 'a-token-of-the-lab';
    fake.open = true;
    fake.reply = { ok: false, error: 'not raised: it lacks the required attribute sample' };
    const page = await open('#/pipelines/demux', { width, scheme: SCHEMES[i] });
    await page.evaluate((token) => sessionStorage.setItem('tael-token', token), fake.token);
    const ask = () => page.getByRole('button', { name: 'Raise', exact: true }).click();
    const box = page.getByLabel('Attributes, one NAME=VALUE a line');
    const raise = () => page.getByRole('button', { name: 'Raise it' }).click();
    const result = (text) => until(page, (want) => document.getElementById('action-result').textContent.includes(want), text);
    await ask();
    assert.equal(await box.evaluate((node) => node === document.activeElement), true);
    assert.deepEqual(await barriers(page), []);
    await picture(page, `raise-${width}-${SCHEMES[i]}`);
    for (const [text, cause] of [['sample', 'Line 1 is no NAME=VALUE'], ['\n=S1', 'Line 2 is no NAME=VALUE'], ['a=1\na=2', 'Line 2: a is given twice'], ['action=cancel', 'action is part of the request'], ['trigger=x', 'trigger is part'], ['tael-request=x', 'tael-request is part']]) {
      await box.fill(text);
      await raise();
      await until(page, (want) => document.getElementById('raise-error').textContent.includes(want), cause);
    }
    assert.deepEqual(await barriers(page), []);
    assert.deepEqual(fake.actions, []);
    await page.keyboard.press('Escape');
    await box.waitFor({ state: 'hidden' });
    assert.deepEqual(fake.actions, []);
    await ask();
    await box.fill('lane=1');
    await raise();
    await result('lacks the required attribute sample');
    // What was given is there, to be mended.
    fake.reply = { ok: true };
    await ask();
    assert.equal(await box.inputValue(), 'lane=1');
    await box.fill(`lane=1\n\n sample = S=1\n__proto__=x\nempty=\nnote=${HOSTILE}`);
    await raise();
    await result('raise: done');
    await ask();
    await box.fill('');
    await raise();
    while (fake.actions.length < 3) await new Promise((resolve) => { setTimeout(resolve, 10); });
    const want = JSON.parse(`{"lane":"1","sample":" S=1","__proto__":"x","empty":"","note":${JSON.stringify(HOSTILE)}}`);
    assert.deepEqual(fake.actions, [{ action: 'raise', attributes: { lane: '1' } }, { action: 'raise', attributes: want }, { action: 'raise' }]);
    // Those of one pipeline are not for another.
    await ask();
    await box.fill('lane=2');
    await page.evaluate(() => { location.hash = '#/pipelines/seq'; });
    await box.waitFor({ state: 'hidden' });
    await ask();
    assert.equal(await box.inputValue(), '');
  });
}

test('a bar that is cut has its time, and each that has room', async () => {
  const run = (i, seconds) => ({ ...fake.runs[2], unit: `01KBMJ2Y7R8QK4ZT9V6W5X4D${10 + i}`, started: now() - 900 + i, ended: now() - 900 + i + seconds, seconds });
  fake.runs = Array.from({ length: 40 }, (_, i) => run(i, i < 2 || i > 38 ? 120 + i : 1));
  for (const each of fake.runs) fake.units.set(each.unit, each);
  const page = await open('#/pipelines/demux');
  const times = () => page.locator('#chart .time').evaluateAll((all) => all.map((each) => each.textContent));
  await until(page, () => document.querySelectorAll('#chart .cut').length === 3);
  assert.deepEqual((await times()).sort(), ['2 m 0 s', '2 m 1 s', '2 m 39 s']);
  // None covers another, and all are inside.
  const overlaps = () => page.evaluate(() => {
    const chart = document.querySelector('#chart svg').getBoundingClientRect();
    const boxes = [...document.querySelectorAll('#chart .time')].map((each) => each.getBoundingClientRect());
    return boxes.filter((a, i) => a.left < chart.left - 1 || a.right > chart.right + 1 || a.top < chart.top || boxes.some((b, k) => k < i && a.left < b.right && b.left < a.right && a.top < b.bottom - 1 && b.top < a.bottom - 1)).length;
  });
  assert.equal(await overlaps(), 0);
  await picture(page, 'cut');
  fake.runs = Array.from({ length: 100 }, (_, i) => run(i, i < 9 ? 7000 + i : 1));
  fake.change('demux', { waiting: 1 });
  await until(page, () => document.querySelectorAll('#chart .cut').length === 9);
  assert.ok((await times()).length >= 4);
  assert.equal(await overlaps(), 0);
  // Nothing is cut, so nothing stands there.
  fake.runs = Array.from({ length: 10 }, (_, i) => run(i, 5));
  fake.change('demux', { waiting: 2 });
  await until(page, () => document.querySelectorAll('#chart .bar-run').length === 10);
  assert.deepEqual(await times(), []);
});

test('a narrow page says how long a run took, and its code', async () => {
  fake.runs[1].reason = 'a reason that is far longer than a line of such a page has room for';
  const page = await open('#/pipelines/demux', { width: 360 });
  await until(page, () => document.querySelectorAll('#runs tbody tr').length === 3);
  const failed = page.locator('#runs tbody tr').nth(1);
  for (const [nth, text] of [[4, '10 s'], [5, '2']]) {
    const cell = failed.locator(`:nth-child(${nth})`).first();
    assert.equal(await cell.isVisible(), true);
    assert.equal(await cell.textContent(), text);
    const { x, width } = await cell.boundingBox();
    assert.ok(x >= 0 && width > 8 && x + width <= 360, `${text}: ${x} ${width}`);
  }
  assert.ok(await page.locator('#runs').evaluate((table) => table.scrollWidth <= table.parentElement.clientWidth));
  assert.ok((await failed.boundingBox()).height < 70);
  // For screen readers it is a table as before: they read what the browser makes of it.
  const session = await page.context().newCDPSession(page);
  const { nodes } = await session.send('Accessibility.getFullAXTree');
  const table = nodes.find((node) => node.role?.value === 'table' && node.name?.value === 'Last runs, newest first');
  const below = (id) => nodes.filter((node) => node.parentId === id).flatMap((node) => [node, ...below(node.nodeId)]);
  const roles = below(table.nodeId).map((node) => node.role?.value);
  const count = (role) => roles.filter((each) => each === role).length;
  assert.deepEqual(['row', 'columnheader', 'rowheader', 'cell'].map(count), [1 + 3, 6, 3, 3 * 5]);
  assert.deepEqual(await barriers(page), []);
});

test('a network without pipelines says what to do', async () => {
  fake.pipelines.clear();
  for (const width of WIDTHS) {
    const page = await open('', { width });
    await until(page, () => document.getElementById('empty-command').textContent.startsWith('tael client --root lab '));
    assert.deepEqual(await page.locator('#sums, #list, #drawing-card, #search, #token-open').locator('visible=true').count(), 1, 'only the button for a token');
    assert.deepEqual(await barriers(page), []);
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
    await picture(page, `empty-${width}`);
  }
});

test('the history has every status, also equal ones', async () => {
  const page = await open('#/pipelines/demux');
  await until(page, () => document.querySelectorAll('#statuses li').length === 3);
  fake.statuses.unshift({ status: 'finished', return_code: 0, ts: now(), time_elapsed: '0:00:01.000000' });
  fake.change('demux', { waiting: 1 });
  await until(page, () => document.querySelectorAll('#statuses li').length === 4);
  assert.match(await page.locator('#statuses li').first().textContent(), /finished/);
});

test('runs of another host are shown without ids', async () => {
  fake.source = 'heard';
  fake.runs = [
    { unit: '', state: 'running', reason: 'x', started: now() - 3, ended: null, seconds: null, code: null, attempt: null },
    { unit: '', state: 'failed', reason: '', started: now() - 60, ended: now() - 50, seconds: 10, code: 2, attempt: null },
    { unit: '', state: 'failed', reason: '', started: null, ended: 1, seconds: null, code: 2, attempt: null },
    { unit: '', state: 'failed', reason: '', started: null, ended: 1, seconds: null, code: 2, attempt: null },
  ];
  const page = await open('#/pipelines/demux');
  await until(page, () => document.querySelectorAll('#runs tbody tr').length === 4 && document.querySelectorAll('#chart .bar-run').length === 4);
  assert.equal(await page.locator('#runs tbody a').count(), 0);
  assert.match(await page.locator('#runs-note').textContent(), /as heard .* on host/);
  assert.equal(await page.locator('#unit-card').isVisible(), false);
  assert.deepEqual(await barriers(page), []);
});

test('a run is canceled with a token, and not without', async () => {
  fake.token = 'a-token-of-the-lab';
  fake.open = true;
  const page = await open('#/pipelines/demux', { ignore: REFUSED });
  const cancel = page.locator('#unit-actions button');
  await cancel.click();
  assert.equal(fake.actions.length, 0);
  await cancel.click();
  await until(page, () => document.getElementById('action-result').textContent.includes('control needs a token'));
  assert.deepEqual(fake.actions, []);
  await page.getByRole('button', { name: 'Token' }).click();
  await page.locator('#token').fill('a-token-of-the-lab');
  await page.getByRole('button', { name: 'Use it' }).click();
  await page.waitForLoadState();
  await cancel.click();
  await cancel.click();
  await until(page, () => document.getElementById('action-result').textContent === 'cancel: done');
  assert.deepEqual(fake.actions, [{ action: 'cancel', unit: UNITS[0] }]);
  await page.getByRole('button', { name: 'Pause' }).click();
  await until(page, () => document.getElementById('action-result').textContent === 'pause: done');
  assert.deepEqual(fake.actions[1], { action: 'pause' });
  assert.deepEqual(await page.evaluate(() => [localStorage.length, document.cookie]), [0, '']);
});

test('a gateway that wants a token is given one', async () => {
  fake.token = 'a-token-of-the-lab';
  const page = await open('', { ignore: REFUSED });
  await page.locator('#token').fill('a-wrong-token');
  await page.getByRole('button', { name: 'Use it' }).click();
  await until(page, () => document.getElementById('token-error').textContent.includes('does not take'));
  assert.equal(await page.locator('#list-body .row').count(), 0);
  await page.locator('#token').fill(fake.token);
  await page.getByRole('button', { name: 'Use it' }).click();
  await until(page, () => document.querySelectorAll('#list-body .row').length === 3);
});

test('nothing of a payload is markup, an address or a style', async () => {
  const evil = `e"><svg onload="hacked=1">`;
  fake.pipelines.set(evil, pipeline(evil, { host: HOSTILE, version: HOSTILE, state: HOSTILE, last: { status: HOSTILE, return_code: HOSTILE, ts: HOSTILE, reason: HOSTILE }, triggers: [{ name: HOSTILE, topics: [HOSTILE] }] }));
  fake.attributes = ' onload="hacked=1"';
  fake.extra = `<script>hacked=1</script><style>*{display:none}</style><foreignObject><body xmlns="http://www.w3.org/1999/xhtml"><script>hacked=1</script></body></foreignObject><a xlink:href="javascript:hacked=1"><text>link</text></a><image href="http://198.51.100.1/x.png"/><use href="#x"/><g onclick="hacked=1" style="fill:url(http://198.51.100.1/)"><rect width="9" height="9" fill="url(http://198.51.100.1/)"/><animate attributeName="x"/></g>`;
  fake.units.set(UNITS[0], { ...fake.units.get(UNITS[0]), note: HOSTILE, attributes: { [HOSTILE]: HOSTILE, moved: 'a\u202eb', constructor: 1, ['__proto__x']: null } });
  fake.runs[0].reason = HOSTILE;
  fake.statuses.push({ status: HOSTILE, ts: HOSTILE, reason: HOSTILE }, { status: 'constructor', ts: 1 });
  fake.beacons.push({ topic: HOSTILE, ts: HOSTILE, fresh: HOSTILE });
  fake.nodes.push({ node: HOSTILE, state: 'constructor', age: HOSTILE, host: HOSTILE });
  fake.refused.push({ ts: now(), path: HOSTILE, status: HOSTILE, cause: HOSTILE, peer: HOSTILE });
  // The browser tells what it does not do while it parses the drawing.
  const page = await open('', { ignore: /^(Executing inline event handler|Applying inline style) violates/ });
  await until(page, () => document.querySelectorAll('#drawing .node').length === 4);
  fake.send('message', { ts: now(), topic: HOSTILE, id: HOSTILE, from: HOSTILE, retained: true, size: 4, payload: HOSTILE });
  fake.send('message', { ts: 'x', topic: 'lab/x', from: {}, payload: { a: HOSTILE } });
  fake.send('pipeline', 'no object');
  fake.send('pipeline', { who: { a: 1 } });
  await settle(page);
  const check = async () => {
    const found = await page.evaluate(() => ({
      hacked: globalThis.hacked ?? 0,
      elements: [...document.querySelectorAll('script:not([src="page.js"]), img, style, iframe, image, use, foreignObject, animate, svg a, [onload], [onerror], [onclick], [style]')].map((e) => e.outerHTML),
      links: [...document.querySelectorAll('[href], [src]')].map((e) => e.getAttribute('href') ?? e.getAttribute('src')).filter((a) => !/^(#[\w/%.*'()!~-]*|icon\.svg|page\.css|page\.js)$/.test(a)),
    }));
    assert.deepEqual(found, { hacked: 0, elements: [], links: [] });
  };
  await check();
  for (const view of ['messages', 'nodes', 'refused', `pipelines/${encodeURIComponent(evil)}/${UNITS[0]}`]) {
    await page.evaluate((hash) => { location.hash = hash; }, `#/${view}`);
    await until(page, (text) => [...document.querySelectorAll('main *')].some((e) => e.checkVisibility() && e.textContent.includes(text)), HOSTILE);
    for (const summary of await page.locator('summary:visible').all()) await summary.click();
    await check();
  }
  await page.getByText('a\\u{202e}b').waitFor();
  while (!fake.outputs.size) await new Promise((resolve) => { setTimeout(resolve, 10); });
  fake.output(`\u001b[31mred\u001b[0m ${HOSTILE}\u0007\n`);
  await until(page, (text) => document.getElementById('output').textContent === `red ${text}\\u{7}\n`, HOSTILE);
  await check();
});

for (const width of WIDTHS) {
  for (const scheme of SCHEMES) {
    test(`at ${width} pixels, ${scheme}, all can use it`, async () => {
      fake.change('zip', { state: 'lost' });
      fake.pipelines.set('a-name-that-a-drawing-cuts', pipeline('a-name-that-a-drawing-cuts'));
      // Enough of everything for bars to scroll.
      for (let i = 0; i < 60; i += 1) {
        fake.statuses.push({ status: 'finished', return_code: 0, ts: now() - 100 - i, time_elapsed: '0:00:01.000000' });
        fake.units.get(UNITS[0]).attributes[`sample_${i}`] = `S${i}`;
        fake.runs.push({ ...fake.runs[2], unit: `01KBMJ2Y7R8QK4ZT9V6W5X4D${10 + i}` });
        fake.beacons.push({ topic: `lab/b${i}/beacon/status`, ts: now(), fresh: true });
        fake.refused.push({ ...fake.refused[0] });
      }
      fake.change('demux', { state: 'paused', waiting: 2 });
      fake.change('seq', { running: [{ unit: UNITS[0], reason: 'x', started: now() }] });
      const page = await open('', { width, scheme });
      for (const view of ['', 'pipelines/demux', 'nodes', 'messages', 'refused']) {
        await page.evaluate((hash) => { location.hash = hash; }, `#/${view}`);
        if (view === '') await until(page, () => document.querySelectorAll('#drawing .node').length === 4);
        if (view === 'pipelines/demux') await until(page, () => document.querySelector('#chart svg') && document.querySelector('#unit-attributes dd'));
        if (view === 'messages') {
          fake.send('message', { ts: now(), topic: 'lab/seq/status', id: '01K', from: 'seq', retained: true, size: 20, payload: '{"status":"finished"}' });
          await page.locator('#messages-list li').first().waitFor();
        }
        assert.deepEqual(await barriers(page), [], view);
        assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${view} is too wide`);
        await picture(page, `${view.split('/')[0] || 'network'}-${width}-${scheme}`);
      }
    });
  }
}

test('the keyboard reaches everything', async () => {
  const page = await open();
  await until(page, () => document.querySelectorAll('#drawing .node').length === 3);
  const focused = () => page.evaluate(() => document.activeElement.dataset.who ?? (document.activeElement.id || document.activeElement.textContent));
  await page.keyboard.press('Tab');
  assert.equal(await focused(), 'Skip to the content');
  await page.keyboard.press('/');
  assert.equal(await focused(), 'search');
  await page.keyboard.press('ArrowDown');
  assert.equal(await focused(), 'demux');
  await page.keyboard.press('ArrowDown');
  assert.equal(await focused(), 'seq');
  await page.keyboard.press('Home');
  assert.equal(await focused(), 'demux');
  // The Tab key passes a list in one step, and comes back to where it was.
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press('Shift+Tab');
  assert.notEqual(await focused(), 'demux');
  await page.keyboard.press('Tab');
  assert.equal(await focused(), 'seq');
  assert.equal(await page.locator('#list-body a:not([tabindex="-1"])').count(), 1);
  await page.locator('.node[data-who="seq"]').focus();
  await page.keyboard.press('ArrowRight');
  assert.equal(await focused(), 'demux');
  await page.keyboard.press('ArrowLeft');
  assert.equal(await focused(), 'seq');
  await page.keyboard.press('Enter');
  await until(page, () => document.getElementById('pipeline-name').textContent === 'seq' && document.activeElement.id === 'main');
  assert.equal(await page.evaluate(() => location.hash), '#/pipelines/seq');
  await until(page, () => document.querySelectorAll('#runs a.unit').length === 3);
  assert.equal(await page.locator('#runs a.unit:not([tabindex="-1"])').count(), 1);
});

test('it says since when the broker is away', async () => {
  const page = await open();
  await until(page, () => document.querySelectorAll('#list-body .row').length === 3);
  assert.equal(await page.locator('#banner').isVisible(), false);
  fake.send('broker', { state: 'away', since: now() - 125 });
  await page.locator('#banner').waitFor();
  assert.match(await page.locator('#banner').textContent(), /broker is away since .*\d\d:\d\d:\d\d \(2 m \d+ s\)/);
  await picture(page, 'away');
  assert.deepEqual(await barriers(page), []);
  fake.send('broker', { state: 'connected', since: now() });
  await page.locator('#banner').waitFor({ state: 'hidden' });
});

/** Returns the colours, in RGB, of all that shows whether a pipeline or a node is there. */
const colours = (page) => page.evaluate(() => {
  const parts = document.querySelectorAll(':is(#list-body .state, #nodes, #beacons, #pipeline-state) .badge, .sum:is(.f-away, .f-paused) b, #count-nodes');
  const shapes = document.querySelectorAll('#drawing .node rect');
  const used = [...parts].map((part) => getComputedStyle(part).color).concat([...shapes].map((each) => getComputedStyle(each).stroke));
  return [...new Set(used)].map((colour) => colour.match(/\d+/g).slice(0, 3).map(Number));
});
const isGrey = ([r, g, b]) => Math.max(r, g, b) - Math.min(r, g, b) < 48;

for (const scheme of SCHEMES) {
  test(`states are those last known while the broker is away, ${scheme}`, async () => {
    fake.pipelines.set('zip', pipeline('zip', { state: 'paused' }));
    const page = await open('', { scheme });
    await until(page, () => document.querySelectorAll('#drawing .node').length === 3);
    // A broker that stops may say so of each client.
    for (const who of ['seq', 'demux']) fake.change(who, { state: 'lost' });
    await until(page, () => document.querySelectorAll('#list-body .s-lost').length === 2);
    assert.ok((await colours(page)).some((colour) => !isGrey(colour)), 'a loss is red');
    const state = (who) => row(page, who).locator('.state').textContent();
    const label = (who) => page.locator(`#drawing [data-who="${who}"]`).getAttribute('aria-label');
    assert.deepEqual([await state('seq'), await label('seq')], ['lost', 'seq: lost']);
    fake.send('broker', { state: 'away', since: now() });
    await until(page, () => document.querySelector('#drawing [data-who="zip"]').getAttribute('aria-label') === 'zip: last known: paused');
    await until(page, () => document.getElementById('said').textContent.includes('The broker is away: all states are the last known ones'));
    assert.doesNotMatch(await page.locator('#said').textContent(), /is lost/);
    assert.deepEqual([await state('seq'), await label('seq')], ['last known: lost', 'seq: last known: lost']);
    assert.match(await page.locator('#list-note').textContent(), /states as last known/);
    // Colours fade.
    const grey = async () => { while (!(await colours(page)).every(isGrey)) await page.waitForTimeout(50); };
    for (const [view, text] of [['', 'last known: lost'], ['pipelines/seq', 'last known: lost'], ['nodes', 'last known: fresh']]) {
      await page.evaluate((hash) => { location.hash = hash; }, `#/${view}`);
      await until(page, (want) => [...document.querySelectorAll('.view:not([hidden]) :is(.state, td, #pipeline-state)')].some((each) => each.textContent === want), text);
      await grey();
      assert.deepEqual(await barriers(page), [], view);
      await picture(page, `old-${view.split('/')[0] || 'network'}-${scheme}`);
    }
    fake.send('broker', { state: 'connected', since: now() });
    await page.evaluate(() => { location.hash = '#/'; });
    await until(page, () => document.querySelector('#drawing [data-who="seq"]').getAttribute('aria-label') === 'seq: lost');
    assert.equal(await state('seq'), 'lost');
    assert.equal(await page.locator('#list-note').textContent(), '');
  });
}

test('it says that the gateway is away, and comes back by itself', async () => {
  const page = await open('', { ignore: ENDED });
  await until(page, () => document.querySelectorAll('#list-body .row').length === 3);
  await page.evaluate(() => { globalThis.before = true; });
  const { port } = fake;
  await fake.close();
  await page.locator('#banner').waitFor();
  assert.match(await page.locator('#banner').textContent(), /gateway cannot be reached since/);
  await until(page, () => document.querySelector('#list-body .state').textContent === 'last known: online');
  assert.deepEqual(await barriers(page), []);
  await picture(page, 'unreachable');
  fake.pipelines.delete('zip');
  fake.pipelines.set('new', pipeline('new'));
  await fake.listen(port);
  await page.locator('#banner').waitFor({ state: 'hidden', timeout: 40_000 });
  await until(page, () => document.querySelector('[href="#/pipelines/new"]') && !document.querySelector('[href="#/pipelines/zip"]'));
  assert.equal(await page.evaluate(() => globalThis.before), true);
});

test('nodes and beacons come, fall silent and go', async () => {
  const page = await open('#/nodes');
  await until(page, () => document.querySelectorAll('#nodes tbody tr').length === 2);
  assert.equal(await page.locator('#count-nodes').textContent(), '2');
  fake.send('node', { node: 'n3', state: 'stale', age: 90, host: 'h3' });
  await until(page, () => document.querySelector('#nodes tbody').textContent.includes('n3') && document.getElementById('count-nodes').textContent === '3');
  fake.send('node', { node: 'n3', state: 'gone' });
  fake.send('beacon', { topic: 'lab/none/beacon/status', ts: 1, fresh: false });
  fake.send('beacon', { topic: 'lab/none/beacon/status', state: 'gone' });
  fake.send('beacon', { topic: 'lab/hall/beacon/status', ts: now(), fresh: true });
  await until(page, () => document.getElementById('count-nodes').textContent === '1' && document.querySelectorAll('#nodes tbody tr').length === 2);
  assert.equal(await page.locator('#beacons .s-online').count(), 2);
});

test('a flood of messages has a bound, a filter and a pause', async () => {
  const page = await open('#/messages');
  await until(page, () => document.getElementById('count-pipelines').textContent === '3');
  const message = (i) => ({ ts: now(), topic: `lab/p${i % 4}/status`, id: `${i}`, from: 'seq', retained: false, size: 9, payload: `{"n":${i}}` });
  for (let i = 0; i < 5000; i += 1) fake.send('message', message(i));
  await settle(page);
  await until(page, () => document.querySelector('#messages-list li')?.textContent.includes('{"n":4999}'));
  assert.equal(await page.locator('#messages-list li').count(), 500);
  assert.equal(await page.locator('#messages-list').evaluate((list) => list.closest('[aria-live]')), null);
  await page.locator('#filter').fill('lab/p1/+');
  await until(page, () => document.querySelectorAll('#messages-list li').length === 125);
  await page.locator('#filter').fill('"n":4998');
  await until(page, () => document.querySelectorAll('#messages-list li').length === 1);
  await page.locator('#filter').fill('');
  await page.getByRole('button', { name: 'Pause' }).click();
  fake.send('message', { ...message(0), payload: 'later' });
  await until(page, () => document.getElementById('messages-note').textContent.includes('paused; 1 more'));
  assert.equal(await page.locator('#messages-list').getByText('later').count(), 0);
  await page.getByRole('button', { name: 'Go on' }).click();
  await page.locator('#messages-list').getByText('later').waitFor();
  fake.send('dropped', { n: 12 });
  await until(page, () => document.getElementById('messages-note').textContent.includes('12 left out'));
});

test('a thousand pipelines stay usable', async () => {
  for (let i = 0; i < 1000; i += 1) fake.pipelines.set(`pipe-${i}`, pipeline(`pipe-${i}`, { host: `host-${i % 50}` }));
  const begun = Date.now();
  const page = await open();
  await until(page, () => document.querySelectorAll('#list-body .row').length === 1003);
  const shown = Date.now() - begun;
  assert.ok(shown < 8000, `${shown} ms until a thousand are shown`);
  // Only the row that has changed is touched.
  await page.evaluate(() => {
    globalThis.touched = new Set();
    new MutationObserver((records) => {
      for (const { target } of records) globalThis.touched.add((target.nodeType === 1 ? target : target.parentElement).closest('.row')?.querySelector('.name').textContent);
    }).observe(document.getElementById('list-body'), { subtree: true, childList: true, attributes: true, characterData: true });
  });
  fake.change('pipe-500', { last: { status: 'finished', return_code: 0, ts: now(), time_elapsed: '0:00:02.000000', reason: 'x' } });
  await until(page, () => globalThis.touched.size > 0);
  assert.deepEqual(await page.evaluate(() => [...globalThis.touched]), ['pipe-500']);
  // Every pipeline changes twice; the page still answers within a second.
  for (const state of ['paused', 'online']) for (let i = 0; i < 1000; i += 1) fake.change(`pipe-${i}`, { state });
  const asked = Date.now();
  await page.locator('#search').fill('no such host');
  await page.locator('#list-none').waitFor();
  await page.locator('#search').fill('host-7');
  await until(page, () => document.querySelectorAll('#list-body .row:not([hidden])').length === 20);
  const took = Date.now() - asked;
  assert.ok(took < 3000, `${took} ms until the search answers`);
  await picture(page, 'thousand');
});
