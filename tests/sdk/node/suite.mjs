// `node suite.mjs BASE_URL`: everything openai-node does, asked of one base URL; prints {name: verdict} as JSON.
// A verdict is what a caller gets: a value, or the error's class, status, code and message.
import { createHash } from 'node:crypto';
import { Agent } from 'node:http';
import OpenAI, { toFile } from 'openai';
import { zodResponseFormat, zodTextFormat } from 'openai/helpers/zod';
import { OpenAIRealtimeWS } from 'openai/realtime/ws';
import { z } from 'zod';

const client = new OpenAI({ apiKey: 'sk-test-key-1', adminAPIKey: 'sk-admin-key-1', baseURL: process.argv[2], timeout: 20_000 });
const messages = [{ role: 'user', content: 'Grüße 👋' }];
const asks = { model: 'gpt-x', messages };
const mock = (what, more = {}) => ({ headers: { 'x-mock': what }, ...more });
const digest = (data) => createHash('sha256').update(Buffer.from(data)).digest('hex');
const plain = Object.assign(new Agent(), { protocol: 'https:' }); // the SDK knows no ws://: it is told that this is a wss://
const verdicts = {};

async function verdict(name, call) {
  try {
    verdicts[name] = { value: (await call()) ?? null };
  } catch (error) {
    const cause = error.cause ? String(error.cause.code ?? error.cause.name) : undefined;
    verdicts[name] = { error: error.constructor.name, status: error.status, code: error.code, message: error.message, cause, request: error.requestID };
  }
}

// Every method of every resource that makes one request, with the least it takes.

function* methods(resource, path, seen = new Set()) {
  if (seen.has(resource)) return;
  seen.add(resource);
  for (const name of Object.getOwnPropertyNames(Object.getPrototypeOf(resource))) {
    const source = Function.prototype.toString.call(resource[name]);
    if (name !== 'constructor' && /this\._client\s*\.(get|post|put|patch|delete|getAPIList)\(/.test(source)) {
      yield { name: [...path, name].join('.'), call: (args) => resource[name](...args), source };
    }
  }
  for (const [name, value] of Object.entries(resource)) {
    if (!name.startsWith('_') && value?._client) yield* methods(value, [...path, name], seen);
  }
}

async function least(source) {
  const named = source.slice(source.indexOf('(') + 1, source.indexOf(') {')).split(',').map((each) => each.trim().split(' ')[0]);
  const taken = [...source.matchAll(/const \{ ([^}]*) \} = (?:params|query|body)/g)].flatMap((found) => found[1].split(',')).map((each) => each.trim());
  const object = { model: 'gpt-x' };
  if (source.includes('ultipartFormRequestOptions')) Object.assign(object, { file: await toFile(Buffer.from('abc'), 'a.txt'), purpose: 'batch' });
  for (const name of taken) if (!name.startsWith('...')) object[name.split(/[:=]/)[0].trim()] = `${name}-1`;
  return named.filter((name) => name && name !== 'options').map((name) => (/(body|query|params)/i.test(name) ? object : `${name}/ü-1`));
}

async function everyMethod() {
  for (const { name, call, source } of methods(client, [])) {
    await verdict(name, async () => {
      const made = call(await least(source));
      if (typeof made.withResponse !== 'function') return made;
      const { data, response, request_id } = await made.withResponse();
      const told = [response.status, request_id, response.headers.get('x-ratelimit-remaining-tokens'), response.headers.get('content-type')];
      return data instanceof Response ? [...told, digest(await data.arrayBuffer())] : [...told, data?.body?.data ?? data];
    });
  }
}

async function text(stream, pick) {
  let found = '';
  for await (const event of stream) found += pick(event) ?? '';
  return found;
}

const City = z.object({ team: z.string() });
const tool = { type: 'function', function: { name: 'get_weather', parameters: { type: 'object', properties: { city: { type: 'string' } } } } };

async function scenarios() {
  for (const [status, retries] of [[429, 2], [500, 2], [503, 1], [409, 1], [408, 1]]) {
    await verdict(`retried ${status}`, async () => (await client.chat.completions.create(asks, mock(`flaky ${status} ${retries} node`))).choices[0].message.content);
  }
  await verdict('retried in vain', () => client.chat.completions.create(asks, mock('flaky 429 9 node')));
  for (const status of [400, 401, 403, 404, 409, 422, 429, 500, 502, 529]) {
    await verdict(`error ${status}`, () => client.chat.completions.create(asks, mock(`error ${status}`)));
    await verdict(`error ${status} elsewhere`, () => client.embeddings.create({ model: 'm', input: 'x' }, mock(`error ${status}`)));
  }
  await verdict('timeout', () => client.chat.completions.create(asks, mock('hang', { timeout: 300, maxRetries: 0 })));
  await verdict('timeout elsewhere', () => client.models.list(mock('hang', { timeout: 300, maxRetries: 1 })));
  await verdict('aborted', () => client.chat.completions.create(asks, mock('hang', { signal: AbortSignal.timeout(200) })));
  await verdict('lost', () => client.chat.completions.create(asks, mock('lost', { maxRetries: 0 })));

  await verdict('says', async () => (await client.chat.completions.create(asks, mock('says hello there'))).choices[0].message);
  await verdict('streamed', async () => text(await client.chat.completions.create({ ...asks, stream: true }, mock('says hello there')), (c) => c.choices[0]?.delta.content));
  await verdict('stream helper', async () => (await client.chat.completions.stream(asks, mock('says hello there')).finalChatCompletion()).choices[0].message);
  await verdict('stream cut', async () => text(await client.chat.completions.create({ ...asks, stream: true }, mock('cut')), (c) => c.choices[0]?.delta.content));
  await verdict('stream fails', async () => text(await client.chat.completions.create({ ...asks, stream: true }, mock('failing')), (c) => c.choices[0]?.delta.content));
  await verdict('stream left', async () => {
    for await (const chunk of await client.chat.completions.create({ ...asks, stream: true }, mock('says hello there'))) {
      if (chunk.choices[0].delta.content) return chunk.choices[0].delta.content;
    }
  });
  await verdict('completion', async () => text(await client.completions.create({ model: 'm', prompt: 'p', stream: true }, mock('says hello')), (c) => JSON.stringify(c)));
  await verdict('response', async () => (await client.responses.create({ model: 'm', input: 'x' }, mock('says hello there'))).output_text);
  await verdict('response streamed', async () => text(await client.responses.create({ model: 'm', input: 'x', stream: true }, mock('says hello there')), (e) => `${e.sequence_number} ${e.type} ${e.delta ?? ''};`));
  await verdict('response helper', async () => (await client.responses.stream({ model: 'm', input: 'x' }, mock('says hello there')).finalResponse()).output_text);

  await verdict('tools', async () => (await client.chat.completions.create({ ...asks, tools: [tool] }, mock('tools'))).choices[0].message.tool_calls);
  await verdict('tools streamed', async () => (await client.chat.completions.stream({ ...asks, tools: [tool] }, mock('tools')).finalChatCompletion()).choices[0].message.tool_calls);
  const team = JSON.stringify({ team: 'Zürich' });
  await verdict('parsed', async () => (await client.chat.completions.parse({ ...asks, response_format: zodResponseFormat(City, 'city') }, mock(`says {"team":"A"}`))).choices[0].message.parsed);
  await verdict('parsed not', async () => (await client.chat.completions.parse({ ...asks, response_format: zodResponseFormat(City, 'city') }, mock('says {"team":1}'))).choices[0].message.parsed);
  await verdict('response parsed', async () => (await client.responses.parse({ model: 'm', input: team, text: { format: zodTextFormat(City, 'city') } }, mock('says {"team":"A"}'))).output_parsed);

  await verdict('pages', async () => {
    const ids = [];
    for await (const file of client.files.list({ limit: 2 }, mock('pages'))) ids.push(file.id);
    return ids;
  });
  await verdict('page', async () => (await (await client.files.list({ limit: 2 }, mock('pages'))).getNextPage()).data);
  const large = Buffer.alloc(3_000_000, 'ab\r\n--\x00ü');
  await verdict('upload', async () => client.files.create({ file: await toFile(large, 'gr\u00fc\u00dfe.bin'), purpose: 'batch' }, mock('digest')));
  await verdict('transcription', async () => client.audio.transcriptions.create({ file: await toFile(large, 'a.wav'), model: 'whisper-1' }, mock('digest')));
  await verdict('images', async () => client.images.edit({ image: [await toFile(large, 'a.png'), await toFile(large, 'b.png')], prompt: 'p' }, mock('digest')));
  await verdict('download', async () => digest(await (await client.files.content('file-1', mock('file 20000'))).arrayBuffer()));
  await verdict('gzip', async () => (await client.chat.completions.create(asks, mock('gzip'))).choices[0].message.content.length);
  await verdict('empty', async () => client.delete('/responses/r-1', mock('empty')));
  await verdict('redirect', async () => (await client.get('/models/here', mock('redirect'))).id);
  await verdict('head', async () => (await fetch(`${client.baseURL}/models`, { method: 'OPTIONS', headers: { authorization: 'Bearer x' } })).status);
  await verdict('many at once', async () => {
    const all = await Promise.all([...Array(40).keys()].map((n) => client.chat.completions.create(asks, mock(`says number ${n}`))));
    return all.map((answer) => answer.choices[0].message.content);
  });
  await verdict('realtime', () => new Promise((resolve, reject) => {
    const got = [];
    const realtime = new OpenAIRealtimeWS({ model: 'gpt-realtime', options: { agent: plain } }, client);
    realtime.on('error', reject);
    realtime.socket.on('open', () => {
      realtime.send({ type: 'session.update', session: { instructions: 'ü'.repeat(10) } });
      realtime.send({ type: 'session.update', session: { instructions: 'x'.repeat(70_000) } });
    });
    realtime.on('event', (event) => {
      got.push([event.type, digest(JSON.stringify(event))]);
      if (got.length === 2) realtime.close({ code: 1000, reason: 'enough' });
    });
    realtime.socket.on('close', (code, reason) => resolve([got, code, String(reason)]));
  }));
}

await everyMethod();
await scenarios();
console.log(JSON.stringify(verdicts));
