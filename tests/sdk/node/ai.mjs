// `node ai.mjs BASE_URL`: the Vercel AI SDK asks for a whole answer and for a stream, of both APIs; prints the texts as JSON.
import { createOpenAI } from '@ai-sdk/openai';
import { generateText, streamText } from 'ai';

const openai = createOpenAI({ baseURL: process.argv[2], apiKey: 'sk-test-key-1' });
const said = [];
for (const model of [openai.chat('gpt-x'), openai.responses('gpt-x')]) {
  said.push((await generateText({ model, prompt: 'Say something.' })).text);
  let streamed = '';
  for await (const part of streamText({ model, prompt: 'Say something.' }).textStream) streamed += part;
  said.push(streamed);
}
console.log(JSON.stringify(said));
