// anthropic.mjs - the official client of Anthropic.
import assert from 'node:assert/strict';
import Anthropic from '@anthropic-ai/sdk';
import OpenAI from 'openai';
import { test } from './harness.mjs';

const client = ({ url }) => new Anthropic({ baseURL: url, apiKey: 'none', maxRetries: 0 });
const SUM = [{ role: 'user', content: 'What is 347 + 285?' }];
const GREEDY = { model: 'demo', temperature: 0, max_tokens: 300 };
const WEATHER = {
    name: 'get_weather',
    description: 'Get the weather',
    input_schema: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
};

// Cached tokens are counted apart.
const prompt = (usage) => usage.input_tokens + usage.cache_read_input_tokens;

test('anthropic: message with thinking', async (context) => {
    const message = await client(context).messages.create({ ...GREEDY, messages: SUM });
    assert.equal(message.role, 'assistant');
    assert.deepEqual(message.content.map((block) => block.type), ['thinking', 'text']);
    assert.match(message.content[0].thinking, /Ones/);
    assert.match(message.content[1].text, /632/);
    assert.equal(message.stop_reason, 'end_turn');
    assert.ok(prompt(message.usage) > 5 && message.usage.output_tokens > 5);
    assert.ok(message._request_id);
});

test('anthropic: the same words as the other dialect', async (context) => {
    const message = await client(context).messages.create({ ...GREEDY, messages: SUM });
    const chat = await new OpenAI({ baseURL: `${context.url}/v1`, apiKey: 'none' })
        .chat.completions.create({ ...GREEDY, messages: SUM });
    assert.equal(message.content[0].thinking, chat.choices[0].message.reasoning_content);
    assert.equal(message.content[1].text, chat.choices[0].message.content);
    assert.equal(prompt(message.usage), chat.usage.prompt_tokens);
});

test('anthropic: a stream is the same message', async (context) => {
    const whole = await client(context).messages.create({ ...GREEDY, messages: SUM });
    const types = [];
    const stream = client(context).messages.stream({ ...GREEDY, messages: SUM });
    stream.on('streamEvent', (event) => types.push(event.type));
    const message = await stream.finalMessage();
    const plain = (m) => m.content.map(({ type, text, thinking }) => ({ type, text, thinking }));
    assert.deepEqual(plain(message), plain(whole));
    assert.equal(message.stop_reason, whole.stop_reason);
    assert.equal(message.usage.output_tokens, whole.usage.output_tokens);
    assert.equal(types[0], 'message_start');
    assert.equal(types.at(-1), 'message_stop');
    assert.equal(types.filter((type) => type === 'content_block_start').length, 2);
});

test('anthropic: raw events', async (context) => {
    const events = [];
    for await (const event of await client(context).messages.create(
        { ...GREEDY, messages: SUM, stream: true }))
        events.push(event);
    const text = events.filter((e) => e.delta?.type === 'text_delta').map((e) => e.delta.text);
    assert.match(text.join(''), /632/);
    assert.ok(events.some((e) => e.delta?.type === 'signature_delta'));
    assert.equal(events.at(-2).delta.stop_reason, 'end_turn');
});

test('anthropic: thinking can be disabled', async (context) => {
    const message = await client(context).messages.create(
        { ...GREEDY, messages: SUM, thinking: { type: 'disabled' } });
    assert.ok(message.content.every((block) => block.type === 'text'));
});

async function loop(context, ask) {
    const messages = [{ role: 'user', content: 'What is the weather in Oslo?' }];
    for (let turn = 0; turn < 4; turn++) {
        const message = await ask({ ...GREEDY, messages, tools: [WEATHER] });
        messages.push({ role: 'assistant', content: message.content });
        const calls = message.content.filter((block) => block.type === 'tool_use');
        if (message.stop_reason !== 'tool_use') {
            assert.match(message.content.at(-1).text, /rain/i);
            return messages;
        }
        assert.deepEqual(calls.map((call) => call.input), [{ city: 'Oslo' }]);
        messages.push({
            role: 'user',
            content: calls.map((call) => ({ type: 'tool_result', tool_use_id: call.id, content: 'rain' })),
        });
    }
    throw new Error('the loop does not end');
}

test('anthropic: tools in a loop, whole and streamed', async (context) => {
    const { messages } = client(context);
    const whole = await loop(context, (body) => messages.create(body));
    const streamed = await loop(context, (body) => messages.stream(body).finalMessage());
    assert.equal(whole.length, 4);
    assert.deepEqual(streamed.at(-1).content.at(-1).text, whole.at(-1).content.at(-1).text);
});

test('anthropic: a forced tool, and no other', async (context) => {
    const clock = { name: 'clock', input_schema: { type: 'object', properties: { zone: { enum: ['UTC', 'CET'] } }, required: ['zone'] } };
    for (const tool_choice of [{ type: 'tool', name: 'clock' }, { type: 'any', disable_parallel_tool_use: true }]) {
        const message = await client(context).messages.create({
            ...GREEDY, messages: SUM, tool_choice, tools: tool_choice.name ? [WEATHER, clock] : [clock],
        });
        assert.equal(message.stop_reason, 'tool_use');
        const call = message.content.at(-1);
        assert.equal(call.name, 'clock');
        assert.ok(['UTC', 'CET'].includes(call.input.zone));
    }
});

test('anthropic: an answer of a schema', async (context) => {
    const schema = { type: 'object', properties: { sum: { type: 'integer' } }, required: ['sum'], additionalProperties: false };
    const message = await client(context).messages.create({
        ...GREEDY, messages: SUM, output_config: { format: { type: 'json_schema', schema } },
    });
    assert.ok(Number.isInteger(JSON.parse(message.content.at(-1).text).sum));
});

test('anthropic: count_tokens agrees with usage', async (context) => {
    const body = { model: 'demo', system: 'Be brief.', messages: SUM, tools: [WEATHER] };
    const { input_tokens } = await client(context).messages.countTokens(body);
    const message = await client(context).messages.create({ ...body, max_tokens: 1 });
    assert.equal(prompt(message.usage), input_tokens);
    assert.equal(message.stop_reason, 'max_tokens');
});

test('anthropic: stop sequences', async (context) => {
    const message = await client(context).messages.create(
        { ...GREEDY, messages: SUM, stop_sequences: ['= 6'] });
    assert.equal(message.stop_reason, 'stop_sequence');
    assert.equal(message.stop_sequence, '= 6');
    assert.equal(message.content[1].text, '347 + 285 ');
});

test('anthropic: abort', async (context) => {
    const stream = client(context).messages.stream({ ...GREEDY, max_tokens: 1500, messages: SUM });
    stream.on('thinking', () => stream.abort());
    await assert.rejects(stream.finalMessage(), Anthropic.APIUserAbortError);
});

test('anthropic: errors are the classes that the client knows', async (context) => {
    const { messages } = client(context);
    await assert.rejects(messages.create({ ...GREEDY, model: 'claude', messages: SUM }), (error) => {
        assert.ok(error instanceof Anthropic.NotFoundError);
        assert.equal(error.error.error.type, 'not_found_error');
        return true;
    });
    await assert.rejects(messages.create({ model: 'demo', messages: SUM }), /max_tokens/);
    await assert.rejects(messages.create({ ...GREEDY, messages: [] }), Anthropic.BadRequestError);
    await assert.rejects(messages.create({
        ...GREEDY,
        messages: [{ role: 'user', content: [{ type: 'tool_result', tool_use_id: 'x', content: 'y' }] }],
    }), Anthropic.BadRequestError);
    await assert.rejects(messages.create({
        ...GREEDY,
        messages: [{
            role: 'user',
            content: [{ type: 'image', source: { type: 'base64', media_type: 'image/png', data: '' } }],
        }],
    }), /image/);
});
