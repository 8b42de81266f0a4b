// oracles.mjs - the tokenizer against @huggingface/tokenizers, the template against @huggingface/jinja.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { Template } from '@huggingface/jinja';
import { Tokenizer } from '@huggingface/tokenizers';
import { test } from './harness.mjs';

async function post({ url }, path, body) {
    const reply = await fetch(url + path, { method: 'POST', body: JSON.stringify(body) });
    assert.equal(reply.status, 200, await reply.clone().text());
    return reply.json();
}

// The same texts in every run: xorshift.
function randomOf(seed) {
    let state = seed;
    return (n) => {
        state ^= state << 13;
        state ^= state >>> 17;
        state ^= state << 5;
        return (state >>> 0) % n;
    };
}

const PIECES = ['Hello', ' world', '\n', '\n\n', '  ', '\t', "I'm", "DON'T", '1234567890', 'é', 'ß', '你好', '世界',
    '🚀', '👋🌍', '//', '/* x */', '{"a": 1}', '. ', '?', '!', 'Ünïcödé', 'ﬀ', '\u0301', 'Привет', ' ', '\r\n', '<b>',
    'naïve', '٣', 'x=1;', '\u00a0', '\u200d', 'TOKEN', 'aB', '...'];

function randomText(random, most) {
    let text = '';
    for (let n = 1 + random(most); n > 0; n--) text += PIECES[random(PIECES.length)];
    return text;
}

function openTokenizer({ model }) {
    const json = JSON.parse(readFileSync(`${model}/tokenizer.json`));
    return new Tokenizer(json, {});
}

test('oracle: ids of 400 random texts', async (context) => {
    const tokenizer = openTokenizer(context), random = randomOf(20260731);
    for (let i = 0; i < 400; i++) {
        const prompt = randomText(random, 30);
        const { tokens } = await post(context, '/tokenize', { prompt });
        assert.deepEqual(tokens, tokenizer.encode(prompt, { add_special_tokens: false }).ids,
            JSON.stringify(prompt));
        const back = await post(context, '/detokenize', { tokens });
        assert.equal(back.prompt, prompt);
    }
});

test('oracle: markers in a text', async (context) => {
    const tokenizer = openTokenizer(context);
    const prompt = 'a<think>b</think>[e~[ ]~b]x<minimax:tool_call>';
    const { tokens } = await post(context, '/tokenize', { prompt });
    assert.deepEqual(tokens, tokenizer.encode(prompt, { add_special_tokens: false }).ids);
    const letters = await post(context, '/tokenize', { prompt, markers: false });
    assert.ok(letters.count > tokens.length);
    assert.equal((await post(context, '/detokenize', letters)).prompt, prompt);
});

const TOOLS = [{
    type: 'function',
    function: {
        name: 'get_weather', description: 'Das Wetter, "genau"',
        parameters: { type: 'object', properties: { city: { type: 'string' }, days: { type: 'integer' } } },
    },
}];

function randomConversation(random) {
    const messages = [];
    if (random(2)) messages.push({ role: 'system', content: randomText(random, 5) });
    for (let turns = 1 + random(3); turns > 0; turns--) {
        messages.push({ role: 'user', content: randomText(random, 8) });
        for (let calls = random(3); calls > 0; calls--) {
            const n = 1 + random(2);
            messages.push({
                role: 'assistant',
                content: random(2) ? randomText(random, 3) : null,
                reasoning_content: random(4) ? randomText(random, 4) : undefined,
                tool_calls: Array.from({ length: n }, (_, i) => ({
                    id: `call_${messages.length}_${i}`,
                    name: 'get_weather',
                    arguments: { city: randomText(random, 2), days: random(9), deep: [null, true, { a: 'b' }] },
                })),
            });
            for (const call of messages.at(-1).tool_calls)
                messages.push({ role: 'tool', tool_call_id: call.id, content: randomText(random, 4) });
        }
        if (turns > 1 || random(2))
            messages.push({ role: 'assistant', content: randomText(random, 5), reasoning_content: randomText(random, 3) });
    }
    return messages;
}

// As a client sends it.
function onTheWire(message) {
    if (!message.tool_calls) return message;
    const tool_calls = message.tool_calls.map(({ id, name, arguments: a }) =>
        ({ id, type: 'function', function: { name, arguments: JSON.stringify(a) } }));
    return { ...message, tool_calls };
}

test('oracle: prompts of 200 random conversations', async (context) => {
    const template = new Template(readFileSync(new URL('./m2.jinja', import.meta.url), 'utf8'));
    const tokenizer = openTokenizer(context), random = randomOf(42);
    for (let i = 0; i < 200; i++) {
        const messages = randomConversation(random), tools = random(2) ? TOOLS : undefined;
        const text = template.render({ messages, tools });
        const { tokens } = await post(context, '/tokenize', { messages: messages.map(onTheWire), tools });
        assert.equal((await post(context, '/detokenize', { tokens })).prompt, text);
        assert.deepEqual(tokens, tokenizer.encode(text, { add_special_tokens: false }).ids);
    }
});
