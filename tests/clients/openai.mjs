// openai.mjs - the official client of OpenAI.
import assert from 'node:assert/strict';
import OpenAI from 'openai';
import { test } from './harness.mjs';

const client = ({ url }, options = {}) =>
    new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0, ...options });
const SUM = [{ role: 'user', content: 'What is 347 + 285?' }];
const GREEDY = { model: 'demo', temperature: 0, max_tokens: 300 };
const WEATHER = {
    type: 'function',
    function: {
        name: 'get_weather',
        description: 'Get the weather',
        parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
    },
};

test('openai: models', async (context) => {
    const list = await client(context).models.list();
    assert.equal(list.data.length, 1);
    const one = await client(context).models.retrieve(list.data[0].id);
    assert.equal(one.object, 'model');
});

test('openai: chat with reasoning', async (context) => {
    const answer = await client(context).chat.completions.create({ ...GREEDY, messages: SUM });
    const { message, finish_reason } = answer.choices[0];
    assert.equal(finish_reason, 'stop');
    assert.match(message.content, /632/);
    assert.match(message.reasoning_content, /Ones/);
    assert.equal(answer.usage.total_tokens,
        answer.usage.prompt_tokens + answer.usage.completion_tokens);
});

test('openai: a stream is the same answer', async (context) => {
    const whole = await client(context).chat.completions.create({ ...GREEDY, messages: SUM });
    const stream = await client(context).chat.completions.create(
        { ...GREEDY, messages: SUM, stream: true, stream_options: { include_usage: true } });
    let content = '', reasoning = '', usage, finish;
    for await (const chunk of stream) {
        const choice = chunk.choices[0];
        content += choice?.delta.content ?? '';
        reasoning += choice?.delta.reasoning_content ?? '';
        finish = choice?.finish_reason ?? finish;
        usage = chunk.usage ?? usage;
    }
    assert.equal(content, whole.choices[0].message.content);
    assert.equal(reasoning, whole.choices[0].message.reasoning_content);
    assert.equal(finish, 'stop');
    assert.equal(usage.total_tokens, whole.usage.total_tokens);
});

test('openai: the stream helper', async (context) => {
    const stream = client(context).chat.completions.stream({ ...GREEDY, messages: SUM });
    const completion = await stream.finalChatCompletion();
    assert.match(completion.choices[0].message.content, /632/);
});

test('openai: no reasoning on request', async (context) => {
    const answer = await client(context).chat.completions.create(
        { ...GREEDY, messages: SUM, chat_template_kwargs: { enable_thinking: false } });
    assert.equal(answer.choices[0].message.reasoning_content, undefined);
});

test('openai: tools in a loop', async (context) => {
    const messages = [{ role: 'user', content: 'What is the weather in Oslo?' }];
    let calls = 0;
    for (let turn = 0; turn < 4; turn++) {
        const answer = await client(context).chat.completions.create(
            { ...GREEDY, messages, tools: [WEATHER] });
        const { message, finish_reason } = answer.choices[0];
        messages.push(message);
        if (finish_reason !== 'tool_calls') {
            assert.match(message.content, /rain/i);
            break;
        }
        for (const call of message.tool_calls) {
            calls++;
            assert.equal(call.function.name, 'get_weather');
            assert.deepEqual(JSON.parse(call.function.arguments), { city: 'Oslo' });
            messages.push({ role: 'tool', tool_call_id: call.id, content: 'rain' });
        }
    }
    assert.equal(calls, 1);
});

test('openai: runTools() of the client', async (context) => {
    const seen = [];
    const runner = client(context).chat.completions.runTools({
        ...GREEDY,
        messages: [{ role: 'user', content: 'What is the weather in Oslo?' }],
        tools: [{
            type: 'function',
            function: {
                ...WEATHER.function,
                parse: JSON.parse,
                function: (input) => {
                    seen.push(input);
                    return 'rain';
                },
            },
        }],
        stream: true,
    });
    assert.match(await runner.finalContent(), /rain/i);
    assert.deepEqual(seen, [{ city: 'Oslo' }]);
});

const PERSON = {
    type: 'object',
    properties: {
        name: { type: 'string', minLength: 1, maxLength: 12 },
        age: { type: 'integer', minimum: 18, maximum: 99 },
        role: { enum: ['cook', 'pilot'] },
        tags: { type: 'array', items: { type: 'boolean' }, minItems: 1, maxItems: 3 },
    },
    required: ['name', 'age', 'role', 'tags'],
    additionalProperties: false,
};

function assertPerson(person) {
    assert.deepEqual(Object.keys(person), ['name', 'age', 'role', 'tags']);
    assert.ok(person.name.length >= 1 && person.name.length <= 12);
    assert.ok(Number.isInteger(person.age) && person.age >= 18 && person.age <= 99);
    assert.ok(['cook', 'pilot'].includes(person.role));
    assert.ok(person.tags.length >= 1 && person.tags.length <= 3);
}

test('openai: an answer of a schema, whatever the model would rather say', async (context) => {
    for (const temperature of [0, 1.5]) {
        const answer = await client(context).chat.completions.create({
            ...GREEDY,
            temperature,
            seed: 3,
            messages: SUM,
            response_format: {
                type: 'json_schema', json_schema: { name: 'person', strict: true, schema: PERSON },
            },
        });
        assert.equal(answer.choices[0].finish_reason, 'stop');
        assert.match(answer.choices[0].message.reasoning_content, /./);
        assertPerson(JSON.parse(answer.choices[0].message.content));
    }
});

test('openai: parse() with a schema', async (context) => {
    const answer = await client(context).chat.completions.parse({
        ...GREEDY,
        messages: [{ role: 'user', content: 'Gemma likes eggs.\nTurn this into JSON with name and food.' }],
        response_format: {
            type: 'json_schema',
            json_schema: {
                name: 'liking',
                strict: true,
                schema: {
                    type: 'object',
                    properties: { name: { type: 'string' }, food: { type: 'string' } },
                    required: ['name', 'food'],
                    additionalProperties: false,
                },
            },
        },
    });
    assert.deepEqual(JSON.parse(answer.choices[0].message.content), { name: 'Gemma', food: 'eggs' });
});

test('openai: any JSON object', async (context) => {
    const answer = await client(context).chat.completions.create({
        ...GREEDY, max_tokens: 600, messages: SUM, response_format: { type: 'json_object' },
    });
    if (answer.choices[0].finish_reason === 'stop')
        assert.equal(typeof JSON.parse(answer.choices[0].message.content), 'object');
});

test('openai: a forced tool', async (context) => {
    const other = {
        type: 'function',
        function: { name: 'make_person', strict: true, parameters: PERSON },
    };
    for (const tool_choice of ['required', { type: 'function', function: { name: 'make_person' } }]) {
        const answer = await client(context).chat.completions.create({
            ...GREEDY,
            messages: SUM,
            tools: tool_choice === 'required' ? [other] : [WEATHER, other],
            tool_choice,
            parallel_tool_calls: false,
        });
        assert.equal(answer.choices[0].finish_reason, 'tool_calls');
        const [call, ...more] = answer.choices[0].message.tool_calls;
        assert.deepEqual(more, []);
        assert.equal(call.function.name, 'make_person');
        assertPerson(JSON.parse(call.function.arguments));
    }
});

test('openai: many answers of a schema at once are the same', async (context) => {
    const ask = () => client(context).chat.completions.create({
        ...GREEDY,
        messages: SUM,
        response_format: { type: 'json_schema', json_schema: { name: 'person', schema: PERSON } },
    });
    const alone = await ask();
    for (const answer of await Promise.all([ask(), ask(), ask(), ask(), ask()]))
        assert.equal(answer.choices[0].message.content, alone.choices[0].message.content);
});

test('openai: a schema that cannot be held to is refused by its place', async (context) => {
    const ask = (schema) => client(context).chat.completions.create({
        ...GREEDY,
        messages: SUM,
        response_format: { type: 'json_schema', json_schema: { name: 'x', schema } },
    });
    await assert.rejects(ask({ properties: { a: { not: { multipleOf: 3 } } } }),
        /schema #\/properties\/a\/not\/multipleOf/);
    await assert.rejects(ask({ $ref: '#' }), /cannot be satisfied/);
    await assert.rejects(client(context).chat.completions.create(
        { ...GREEDY, messages: SUM, tool_choice: 'required' }), /there are none/);
});

test('openai: log-probabilities', async (context) => {
    const answer = await client(context).chat.completions.create(
        { ...GREEDY, messages: SUM, max_tokens: 5, logprobs: true, top_logprobs: 3 });
    const tokens = answer.choices[0].logprobs.content;
    assert.equal(tokens.length, 5);
    for (const token of tokens) {
        assert.equal(token.top_logprobs.length, 3);
        assert.equal(token.top_logprobs[0].token, token.token); // greedy
        assert.ok(token.logprob <= 0);
    }
});

test('openai: a seed repeats', async (context) => {
    const ask = () => client(context).chat.completions.create(
        { model: 'demo', seed: 7, temperature: 1.5, max_tokens: 40, messages: SUM });
    const [a, b] = [await ask(), await ask()];
    assert.deepEqual(a.choices[0].message, b.choices[0].message);
});

test('openai: stop strings', async (context) => {
    const answer = await client(context).chat.completions.create(
        { ...GREEDY, messages: SUM, stop: ['= 6'] });
    assert.equal(answer.choices[0].message.content, '347 + 285 ');
    assert.equal(answer.choices[0].finish_reason, 'stop');
});

test('openai: completions', async (context) => {
    const answer = await client(context).completions.create(
        { model: 'demo', prompt: 'Hello', max_tokens: 8, temperature: 0, logprobs: 2 });
    assert.equal(answer.object, 'text_completion');
    assert.equal(answer.choices[0].logprobs.tokens.length, answer.usage.completion_tokens);
});

async function requestsRunning({ url }) {
    const cluster = await (await fetch(`${url}/cluster`)).json();
    assert.ok(Number.isInteger(cluster.requests.running));
    return cluster.requests.running + cluster.requests.queued;
}

test('openai: an abort frees the request', async (context) => {
    const stream = await client(context).chat.completions.create(
        { model: 'demo', messages: SUM, stream: true, max_tokens: 1500, ignore_eos: true });
    for await (const chunk of stream) {
        assert.ok(chunk.id);
        break; // the client closes the connection
    }
    stream.controller.abort();
    const deadline = Date.now() + 5000;
    while (await requestsRunning(context)) assert.ok(Date.now() < deadline, 'still running');
});

test('openai: many at once', async (context) => {
    const alone = await client(context).chat.completions.create({ ...GREEDY, messages: SUM });
    const answers = await Promise.all(Array.from({ length: 8 }, () =>
        client(context).chat.completions.create({ ...GREEDY, messages: SUM })));
    for (const answer of answers)
        assert.deepEqual(answer.choices[0].message, alone.choices[0].message);
});

test('openai: errors are the classes that the client knows', async (context) => {
    const chat = client(context).chat.completions;
    await assert.rejects(chat.create({ model: 'gpt-4', messages: SUM }), (error) => {
        assert.ok(error instanceof OpenAI.NotFoundError);
        assert.equal(error.code, 'model_not_found');
        return true;
    });
    await assert.rejects(chat.create({ model: 'demo', messages: [] }), OpenAI.BadRequestError);
    await assert.rejects(chat.create({ model: 'demo', messages: SUM, temperature: 9 }), (error) => {
        assert.ok(error instanceof OpenAI.BadRequestError);
        assert.equal(error.param, 'temperature');
        return true;
    });
    await assert.rejects(chat.create({
        model: 'demo',
        messages: [...SUM, { role: 'tool', tool_call_id: 'x', content: 'orphan' }],
    }), OpenAI.BadRequestError);
    await assert.rejects(chat.create({ model: 'demo', messages: [{ role: 'robot', content: 'x' }] }),
        /role "robot"/);
    const long = [{ role: 'user', content: 'word '.repeat(5000) }];
    await assert.rejects(chat.create({ model: 'demo', messages: long }),
        (error) => error.code === 'context_length_exceeded');
});

test('openai: several choices, each what it is alone', async (context) => {
    const ask = (more) => client(context).chat.completions.create(
        { model: 'demo', messages: SUM, max_tokens: 60, temperature: 1, ...more });
    const many = await ask({ n: 3, seed: 70 });
    assert.deepEqual(many.choices.map((c) => c.index), [0, 1, 2]);
    let tokens = 0, prompt;
    for (let i = 0; i < 3; i++) {
        const alone = await ask({ seed: 70 + i });
        assert.deepEqual(many.choices[i].message, alone.choices[0].message);
        tokens += alone.usage.completion_tokens;
        prompt = alone.usage.prompt_tokens;
    }
    assert.equal(many.usage.completion_tokens, tokens);
    assert.equal(many.usage.prompt_tokens, prompt);
    const stream = await ask({ n: 3, seed: 70, stream: true });
    const texts = ['', '', ''];
    for await (const chunk of stream)
        for (const choice of chunk.choices)
            texts[choice.index] += choice.delta.content ?? '';
    assert.deepEqual(texts, many.choices.map((c) => c.message.content));
    const helper = client(context).chat.completions.stream(
        { model: 'demo', messages: SUM, max_tokens: 60, temperature: 1, n: 2, seed: 70 });
    assert.equal((await helper.finalChatCompletion()).choices.length, 2);
});

test('openai: completions with best_of, echo and several prompts', async (context) => {
    const ask = (more) => client(context).completions.create(
        { model: 'demo', max_tokens: 8, temperature: 1, seed: 3, ...more });
    const best = await ask({ prompt: 'The sum', best_of: 4, n: 2 });
    assert.equal(best.choices.length, 2);
    const echoed = await ask({ prompt: ['The sum', 'What'], echo: true });
    assert.match(echoed.choices[0].text, /^The sum/);
    assert.match(echoed.choices[1].text, /^What/);
    assert.equal(echoed.choices[1].index, 1);
    await assert.rejects(ask({ prompt: 'a', best_of: 2, stream: true }),
        (e) => e instanceof OpenAI.BadRequestError && e.param === 'best_of');
    await assert.rejects(ask({ prompt: 'a', echo: true, logprobs: 1 }),
        (e) => e instanceof OpenAI.BadRequestError && e.param === 'echo');
});

test('openai: urgency by service_tier or priority', async (context) => {
    const ask = (more) => client(context).chat.completions.create(
        { model: 'demo', messages: SUM, max_tokens: 4, ...more });
    for (const more of [{ service_tier: 'flex' }, { service_tier: 'priority' }, { priority: 3 }])
        assert.equal((await ask(more)).usage.completion_tokens, 4);
    await assert.rejects(ask({ service_tier: 'flex', priority: -1 }),
        (e) => e instanceof OpenAI.BadRequestError && e.param === 'service_tier');
});
