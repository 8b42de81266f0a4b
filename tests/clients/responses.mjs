// responses.mjs - the Responses API with the official client of OpenAI.
import assert from 'node:assert/strict';
import OpenAI from 'openai';
import { test } from './harness.mjs';

const client = ({ url }) => new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 });
const GREEDY = { model: 'demo', temperature: 0, max_output_tokens: 300 };
const SUM = 'What is 347 + 285?';
const WEATHER = {
    type: 'function',
    name: 'get_weather',
    description: 'Get the weather',
    parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
    strict: false,
};

test('responses: a text as input', async (context) => {
    const answer = await client(context).responses.create({ ...GREEDY, input: SUM });
    assert.equal(answer.status, 'completed');
    assert.deepEqual(answer.output.map((item) => item.type), ['reasoning', 'message']);
    assert.match(answer.output_text, /632/);
    assert.match(answer.output[0].content[0].text, /Ones/);
    assert.ok(answer.usage.output_tokens_details.reasoning_tokens > 5);
    assert.ok(answer.usage.output_tokens > answer.usage.output_tokens_details.reasoning_tokens);
});

test('responses: the same words as chat', async (context) => {
    const answer = await client(context).responses.create(
        { ...GREEDY, instructions: 'Be brief.', input: [{ role: 'user', content: [{ type: 'input_text', text: SUM }] }] });
    const chat = await client(context).chat.completions.create({
        model: 'demo', temperature: 0, max_tokens: 300,
        messages: [{ role: 'system', content: 'Be brief.' }, { role: 'user', content: SUM }],
    });
    assert.equal(answer.output_text, chat.choices[0].message.content);
    assert.equal(answer.usage.input_tokens, chat.usage.prompt_tokens);
});

test('responses: a stream is the same response', async (context) => {
    const whole = await client(context).responses.create({ ...GREEDY, input: SUM });
    const types = [];
    let text = '', last = -1, final;
    for await (const event of await client(context).responses.create({ ...GREEDY, input: SUM, stream: true })) {
        types.push(event.type);
        assert.ok(event.sequence_number > last);
        last = event.sequence_number;
        if (event.type === 'response.output_text.delta') text += event.delta;
        if (event.type === 'response.completed') final = event.response;
    }
    assert.equal(types[0], 'response.created');
    assert.equal(types.at(-1), 'response.completed');
    assert.equal(text, whole.output_text);
    const plain = (response) => response.output.map(({ type, content }) => ({ type, content }));
    assert.deepEqual(plain(final), plain(whole));
    for (const type of ['added', 'done'])
        assert.equal(types.filter((t) => t === `response.output_item.${type}`).length, 2);
    const helper = await client(context).responses.stream({ ...GREEDY, input: SUM }).finalResponse();
    assert.equal(helper.output_text, whole.output_text);
});

async function loop(ask) {
    const input = [{ role: 'user', content: 'What is the weather in Oslo?' }];
    for (let turn = 0; turn < 4; turn++) {
        const answer = await ask({ ...GREEDY, input, tools: [WEATHER] });
        input.push(...answer.output);
        const calls = answer.output.filter((item) => item.type === 'function_call');
        if (calls.length === 0) return answer.output_text;
        for (const call of calls) {
            assert.deepEqual(JSON.parse(call.arguments), { city: 'Oslo' });
            input.push({ type: 'function_call_output', call_id: call.call_id, output: 'rain' });
        }
    }
    throw new Error('the loop does not end');
}

test('responses: tools in a loop, whole and streamed', async (context) => {
    const { responses } = client(context);
    const whole = await loop((body) => responses.create(body));
    assert.match(whole, /rain/i);
    assert.equal(await loop((body) => responses.stream(body).finalResponse()), whole);
});

test('responses: an answer of a schema, and a forced tool', async (context) => {
    const schema = { type: 'object', properties: { sum: { type: 'integer' } }, required: ['sum'], additionalProperties: false };
    const answer = await client(context).responses.create({
        ...GREEDY, input: SUM, text: { format: { type: 'json_schema', name: 'sum', schema, strict: true } },
    });
    assert.ok(Number.isInteger(JSON.parse(answer.output_text).sum));
    const forced = await client(context).responses.create({
        ...GREEDY, input: SUM, tools: [WEATHER], tool_choice: { type: 'function', name: 'get_weather' },
    });
    assert.equal(forced.output.at(-1).type, 'function_call');
});

test('responses: cut short', async (context) => {
    const answer = await client(context).responses.create({ ...GREEDY, max_output_tokens: 5, input: SUM });
    assert.equal(answer.status, 'incomplete');
    assert.equal(answer.incomplete_details.reason, 'max_output_tokens');
});

test('responses: what is refused', async (context) => {
    const { responses } = client(context);
    await assert.rejects(responses.create({ ...GREEDY, input: SUM, previous_response_id: 'resp_1' }),
        (error) => error instanceof OpenAI.BadRequestError && error.param === 'previous_response_id');
    await assert.rejects(responses.create({ ...GREEDY, input: SUM, background: true }), /background/);
    await assert.rejects(responses.create({ ...GREEDY, input: [] }), OpenAI.BadRequestError);
    await assert.rejects(responses.create({ ...GREEDY, input: SUM, tools: [{ type: 'web_search' }] }), /web_search/);
    await assert.rejects(responses.create(
        { ...GREEDY, input: [{ type: 'function_call_output', call_id: 'x', output: 'y' }] }), OpenAI.BadRequestError);
});
