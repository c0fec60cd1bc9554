// A browser that counts what it must not do: errors on its console, requests to other hosts.

import { createRequire } from 'node:module';
import { mkdtemp, mkdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';

/** Folder for what the tests leave, and for what npm has installed (`.ci/page`). */
export const TARGET = resolve(process.env.PAGE_TARGET ?? 'target/page');

const require = createRequire(join(TARGET, 'npm', 'package.json'));
const { chromium } = require('playwright-core');
const AXE = await readFile(require.resolve('axe-core/axe.min.js'), 'utf8');

const FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];

/** Maximum milliseconds until the page shows what is expected. */
const LIMIT = 20_000;

export const WIDTHS = [360, 1600];
export const SCHEMES = ['light', 'dark'];

export class Browser {
  static async start() {
    const browser = new Browser();
    browser.folder = await mkdtemp(join(tmpdir(), 'tael-page-'));
    await mkdir(TARGET, { recursive: true });
    browser.chromium = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: FLAGS, env: { ...process.env, HOME: browser.folder } });
    return browser;
  }

  async stop() {
    await this.chromium.close();
    await rm(this.folder, { recursive: true, force: true });
  }

  /** Opens a page; `wrong` gathers what it must not do. */
  async open(address, { width = 1600, scheme = 'light', ignore = null } = {}) {
    const context = await this.chromium.newContext({ colorScheme: scheme, viewport: { width, height: width < 600 ? 740 : 1000 } });
    context.setDefaultTimeout(LIMIT);
    const page = await context.newPage();
    const { host } = new URL(address);
    page.wrong = [];
    page.on('console', (message) => {
      if (['error', 'warning'].includes(message.type()) && !ignore?.test(message.text())) page.wrong.push(`console: ${message.text()}`);
    });
    page.on('pageerror', (error) => page.wrong.push(`error: ${error.message}`));
    page.on('request', (request) => {
      if (new URL(request.url()).host !== host) page.wrong.push(`request: ${request.url()}`);
    });
    page.on('dialog', (dialog) => {
      page.wrong.push(`dialog: ${dialog.message()}`);
      dialog.dismiss();
    });
    await page.goto(address);
    return page;
  }
}

/** Returns what axe-core finds that is serious or critical. */
export async function barriers(page) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document));
  return violations
    .filter(({ impact }) => impact === 'serious' || impact === 'critical')
    .map(({ id, nodes }) => `${id}: ${nodes.map(({ target }) => target.join(' ')).join(', ')}`);
}

/** Waits until `test` holds on the page. */
export const until = (page, test, argument) => page.waitForFunction(test, argument, { timeout: LIMIT });

/** Keeps a picture of the page for people. */
export const picture = (page, name) => page.screenshot({ path: join(TARGET, `${name}.png`) });
