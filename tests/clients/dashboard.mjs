// dashboard.mjs - the pages at / in a real headless browser: chat, operations, keyboard, phone, keys.
//
// Needs Debian's chromium (deploy/install-debian.sh --clients).  With SHOTS=DIR it leaves screenshots there.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { chromium } from 'playwright-core';
import { test } from './harness.mjs';

const BROWSER = '/usr/bin/chromium';
const SHOTS = process.env.SHOTS;
const DESKTOP = { width: 1280, height: 900 }, PHONE = { width: 390, height: 844 };

// A page of its own browser; anything that the page complains about fails the test.
async function withPage({ url }, options, run) {
    if (!existsSync(BROWSER)) throw new Error(`${BROWSER} is missing: deploy/install-debian.sh --clients`);
    const browser = await chromium.launch({
        executablePath: BROWSER,
        args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
            '--disable-background-networking', '--disable-component-update', '--disable-sync'],
    });
    const complaints = [], foreign = [];
    try {
        const page = await browser.newPage({ viewport: DESKTOP, ...options });
        page.on('console', (m) => ['error', 'warning'].includes(m.type()) && complaints.push(m.text()));
        page.on('pageerror', (e) => complaints.push(String(e)));
        page.on('request', (r) => r.url().startsWith(url) || foreign.push(r.url()));
        await page.goto(url + (options.path ?? '/'));
        await run(page, complaints);
        assert.deepEqual(complaints, []);
        assert.deepEqual(foreign, []);
    } finally {
        await browser.close();
    }
}

const shot = (page, name) => SHOTS && page.screenshot({ path: `${SHOTS}/${name}.png` });
const figures = (page) => page.locator('#figures').textContent();

async function ask(page, text) {
    await page.locator('#message').fill(text);
    await page.keyboard.press('Enter');
}

// Nothing reaches over the side.
async function checkWidth(page) {
    const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(over <= 0, `the page is ${over} px too wide`);
}

test('dashboard: a chat streams, by keyboard alone', (cluster) => withPage(cluster, {}, async (page) => {
    await page.waitForFunction(() => document.querySelector('#health').textContent === 'ready');
    await ask(page, 'What is 3 plus 4?');
    await page.waitForFunction(() => /tokens\/s/.test(document.querySelector('#figures').textContent));
    assert.match(await page.locator('.said:not(.user) .text').innerText(), /\S/);
    assert.match(await figures(page), /^\d+ tokens, first after [\d.]+ s, [\d.]+ tokens\/s; prompt \d+/);
    await ask(page, 'And 2 plus 2?');
    await page.waitForFunction(() => document.querySelectorAll('.said').length === 4 && !document.querySelector('.writing'));
    await shot(page, 'chat');
}));

// The model's side is played by the test: what it says is what the page must show.
const events = (deltas, finish) => [...deltas.map((delta) => ({ choices: [{ index: 0, delta, finish_reason: null }] })),
    { choices: [{ index: 0, delta: {}, finish_reason: finish }] },
    { choices: [], usage: { prompt_tokens: 9, completion_tokens: 7, prompt_tokens_details: { cached_tokens: 4 } } }]
    .map((e) => `data: ${JSON.stringify(e)}\n\n`).join('') + 'data: [DONE]\n\n';

test('dashboard: reasoning is folded, tool calls are shown and answered', (cluster) => withPage(cluster, {}, async (page) => {
    const bodies = [];
    await page.route('**/v1/chat/completions', (route) => {
        bodies.push(route.request().postDataJSON());
        route.fulfill({
            contentType: 'text/event-stream',
            body: bodies.length === 1
                ? events([{ role: 'assistant', reasoning_content: 'I should ' }, { reasoning_content: 'look.' },
                    { content: 'Looking <b>it</b> up.' },
                    { tool_calls: [{ index: 0, id: 'call_1', type: 'function', function: { name: 'weather', arguments: '{"city":' } }] },
                    { tool_calls: [{ index: 0, function: { arguments: '"Riga"}' } }] }], 'tool_calls')
                : events([{ content: 'It rains.' }], 'stop').replace('"choices"', '"degraded":true,"choices"'),
        });
    });
    await page.locator('#settings summary').click();
    await page.locator('#tools').fill('[{"type":"function","function":{"name":"weather"}}]');
    await ask(page, 'Weather?');
    await page.locator('.call').waitFor();
    assert.equal(await page.locator('.said details').getAttribute('open'), null);
    assert.equal(await page.locator('.said summary').innerText(), 'Thought (3 words)');
    assert.equal(await page.locator('.said:not(.user) .text').innerText(), 'Looking <b>it</b> up.');
    assert.equal(await page.locator('.call b').innerText(), 'weather');
    assert.match(await page.locator('.call pre').innerText(), /"city": "Riga"/);
    assert.match(await figures(page), /7 tokens.*prompt 9 \(4 cached\)/);
    await shot(page, 'tools');
    await page.locator('.call input').fill('rain');
    await ask(page, 'Go on');
    await page.waitForFunction(() => document.querySelector('#talk').innerText.includes('It rains.'));
    assert.match(await page.locator('.said').last().innerText(), /Some experts could not be asked/);
    assert.equal(bodies[0].tools[0].function.name, 'weather');
    const [, assistant, tool, user] = bodies[1].messages;
    assert.equal(assistant.reasoning_content, 'I should look.');
    assert.deepEqual(assistant.tool_calls[0].function, { name: 'weather', arguments: '{"city":"Riga"}' });
    assert.deepEqual(tool, { role: 'tool', tool_call_id: 'call_1', content: 'rain' });
    assert.deepEqual(user, { role: 'user', content: 'Go on' });
}));

test('dashboard: stop ends an answer, and the cluster forgets it', (cluster) => withPage(cluster, {}, async (page) => {
    await page.route('**/v1/chat/completions', (route) => route.continue({
        postData: JSON.stringify({ ...route.request().postDataJSON(), ignore_eos: true, max_tokens: 900 }),
    }));
    // A slow line: on a busy machine the whole answer is written before a key is pressed.
    const line = await page.context().newCDPSession(page);
    await line.send('Network.emulateNetworkConditions',
        { offline: false, latency: 0, downloadThroughput: 5000, uploadThroughput: -1 });
    await ask(page, 'Count.');
    await page.waitForFunction(() => document.querySelector('.writing')?.innerText.length > 20);
    await page.keyboard.press('Escape');
    await page.waitForFunction(() => document.querySelector('.note:not(:empty)')?.textContent === 'Stopped.');
    for (let i = 0; ; i++) {
        const { requests } = await (await fetch(cluster.url + '/cluster')).json();
        if (requests.running === 0) break;
        assert.ok(i < 50, 'the request still runs');
        await new Promise((resolve) => setTimeout(resolve, 100));
    }
}));

test('dashboard: operations show nodes, the map and what happened', (cluster) => withPage(cluster, {}, async (page) => {
    await page.locator('#tab-chat').focus();
    await page.keyboard.press('ArrowRight');
    await page.locator('.node').nth(2).waitFor();
    assert.equal(await page.locator('#tab-ops').getAttribute('aria-selected'), 'true');
    assert.equal(await page.locator('.node .pill.good').count(), 3);
    assert.equal(await page.locator('.node button:has-text("Drain")').count(), 2);
    await page.waitForFunction(() => document.querySelector('#events').innerText.includes('cluster ready'));
    await page.waitForFunction(() => document.querySelector('#heat').width === 256);
    for (const what of ['copies', 'homes', 'load']) {
        await page.locator(`input[value="${what}"]`).check();
        assert.match(await page.locator('#heat').getAttribute('aria-label'), new RegExp(`6 layers .* 256 experts .*${what}`));
    }
    await page.locator('#heat').focus();
    await page.keyboard.press('ArrowDown');
    assert.match(await page.locator('#heat-text').textContent(), /^Layer 1, expert 0: \d+ % .* 1 copy, first on expert-[01]\.$/);
    const load = fetch(cluster.url + '/v1/completions', {
        method: 'POST', body: JSON.stringify({ prompt: 'One two three', max_tokens: 200, ignore_eos: true }),
    });
    await page.waitForFunction(() => /generated: (?!0(\D|$))/.test(document.querySelector('#plot-tokens').getAttribute('aria-label')));
    await (await load).arrayBuffer();
    await shot(page, 'operations');
    await page.locator('.node button').first().click();
    await page.locator('#confirm button[value="no"]').click();
    assert.equal(await page.locator('.node .pill.good').count(), 3);
}));

test('dashboard: fits a phone, light and dark', async (cluster) => {
    for (const colorScheme of ['light', 'dark'])
        for (const path of ['/', '/#operations'])
            await withPage(cluster, { viewport: PHONE, colorScheme, path, hasTouch: true }, async (page) => {
                if (path === '/') {
                    await ask(page, 'What is 5 plus 1?');
                    await page.waitForFunction(() => /tokens\/s/.test(document.querySelector('#figures').textContent));
                } else {
                    await page.locator('.node').nth(2).waitFor();
                    await page.waitForTimeout(2500);
                }
                await checkWidth(page);
                await shot(page, `phone-${path.slice(2) || 'chat'}-${colorScheme}`);
            });
});

test('dashboard: asks for a key where one is needed', (cluster) => withPage(cluster, { path: '/#operations' }, async (page, complaints) => {
    const refuse = (route) => route.request().headers().authorization === 'Bearer right'
        ? route.continue()
        : route.fulfill({ status: 401, contentType: 'application/json', body: '{"error":{"message":"an API key is needed"}}' });
    for (const path of ['**/cluster', '**/metrics', '**/admin/**', '**/v1/**']) await page.route(path, refuse);
    await page.reload();
    await page.locator('#key').waitFor();
    await page.locator('#key').fill('wrong');
    await page.keyboard.press('Enter');
    await page.locator('#key-form').waitFor({ state: 'visible' });
    await page.locator('#key').fill('right');
    await page.keyboard.press('Enter');
    await page.locator('.node').nth(2).waitFor();
    assert.equal(await page.locator('#key-form').isVisible(), false);
    complaints.splice(0); // the browser reports the refusals itself
}));
