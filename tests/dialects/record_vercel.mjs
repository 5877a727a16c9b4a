// Records the spans of Vercel's AI SDK over the order desk's dialogue: node record_vercel.mjs BASE_URL FILE
// The packages are those of the environment that `make spans` makes; the file is read by tests/dialects/record.py.
import { writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(pathToFileURL(process.cwd() + "/package.json"));
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const { generateText, streamText, stepCountIs, tool } = await load("ai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const { z } = await load("zod");
const { NodeTracerProvider } = await load("@opentelemetry/sdk-trace-node");
const { InMemorySpanExporter, SimpleSpanProcessor } = await load("@opentelemetry/sdk-trace-base");

const [baseURL, file] = process.argv.slice(2);
const exporter = new InMemorySpanExporter();
const provider = new NodeTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] });
provider.register();
const model = createOpenAICompatible({ name: "desk", apiKey: "none", baseURL }).chatModel("desk");

const get_order = tool({
  description: "Look an order up.",
  inputSchema: z.object({ order_id: z.number().int() }),
  execute: async ({ order_id }) =>
    order_id > 8
      ? `There is no order ${order_id}.`
      : `{"order": ${order_id}, "status": "shipped", "eta": "2026-05-${order_id + 13}"}`,
});
const settings = {
  model,
  system: "You are the order desk.",
  tools: { get_order },
  stopWhen: stepCountIs(5),
  maxRetries: 0,
  experimental_telemetry: {
    isEnabled: true,
    functionId: "order_desk",
    metadata: { sessionId: "session-1", userId: "ada", plan: "gold" },
  },
};
const messages = [{ role: "user", content: "Where is order 7?" }];
const first = await generateText({ ...settings, messages, temperature: 0.5 });
messages.push(...first.response.messages, { role: "user", content: "And orders 8 and 9?" });
const second = streamText({ ...settings, messages });
await second.consumeStream();

const nanoseconds = ([seconds, rest]) => BigInt(seconds) * 1_000_000_000n + BigInt(rest);
const spans = exporter.getFinishedSpans().map((span) => ({
  trace_id: span.spanContext().traceId,
  span_id: span.spanContext().spanId,
  parent_id: span.parentSpanContext?.spanId ?? null,
  name: span.name,
  kind: ["internal", "server", "client", "producer", "consumer"][span.kind],
  start: Number(nanoseconds(span.startTime)),
  end: Number(nanoseconds(span.endTime)),
  attributes: span.attributes,
  events: span.events.map((event) => ({
    name: event.name,
    time: Number(nanoseconds(event.time)),
    attributes: event.attributes ?? {},
  })),
  status: ["unset", "ok", "error"][span.status.code],
  status_message: span.status.message ?? null,
  resource: {},
  scope: span.instrumentationScope.name,
  scope_version: span.instrumentationScope.version ?? null,
}));
writeFileSync(file, JSON.stringify(spans));
