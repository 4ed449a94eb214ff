// Registers, registers again, makes one call and unregisters, all over one WebSocket; see README.md.
//
//     node client.mjs URL ORIGIN CALLEE
//
// Says on standard output what happened, one step a line; ends with 0 when all of it went well. The call is ended here,
// or by the callee where that is called "hangup".

import { Registerer, RegistererState, SessionState, UserAgent, Inviter } from "sip.js";
import { WebSocket } from "ws";

const [url, origin, callee] = process.argv.slice(2);
const domain = new URL(url).host;
const hangsUp = callee === "hangup";

/** How long each step may take, in milliseconds. */
const PATIENCE = 10_000;

/** What SIP.js takes for the browser's: with the Origin that a browser would add, and an eye on the keep-alives. */
let keepAlives = 0;
globalThis.WebSocket = class extends WebSocket {
  constructor(address, protocol) {
    super(address, protocol, { origin });
    this.on("open", () => say("connected", this.protocol));
    this.on("error", (error) => fail(error.message));
    this.on("message", (data) => (keepAlives += String(data) === "\r\n" ? 1 : 0));
  }
};

let answer = "";

/** In place of a browser's media, which Node does not have: a fixed offer, and any answer will do. */
const media = {
  close: () => {},
  getDescription: async () => ({
    contentType: "application/sdp",
    body: "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 9 RTP/AVP 8\r\n",
  }),
  hasDescription: (type) => type === "application/sdp",
  setDescription: async (description) => void (answer = description),
  sendDtmf: () => false,
};

function say(...words) {
  console.log(words.join(" "));
}

function fail(why) {
  console.error(why);
  process.exit(1);
}

/** Waits until an emitter of SIP.js reaches a state. */
function reach(subject, state) {
  return new Promise((resolve) => {
    const timer = setTimeout(() => fail(`waited for ${state}, it is ${subject.state}`), PATIENCE);
    subject.stateChange.addListener((reached) => {
      if (reached === state) {
        clearTimeout(timer);
        resolve();
      }
    });
  });
}

/** Sends a REGISTER and waits for its final answer. */
function register(send) {
  return new Promise((resolve) => {
    const timer = setTimeout(() => fail("no answer to REGISTER"), PATIENCE);
    send({
      requestDelegate: {
        onAccept: ({ message }) => resolve(clearTimeout(timer) ?? message.statusCode),
        onReject: ({ message }) => fail(`REGISTER: ${message.statusCode} ${message.reasonPhrase}`),
      },
    });
  });
}

const agent = new UserAgent({
  uri: UserAgent.makeURI(`sip:alice@${domain}`),
  authorizationUsername: "alice",
  authorizationPassword: "wonderland",
  transportOptions: { server: url, keepAliveInterval: 1 },
  sessionDescriptionHandlerFactory: () => media,
  logLevel: "error",
});
await agent.start();

const registerer = new Registerer(agent, { expires: 600 });
say("registered", await register((options) => registerer.register(options)), registerer.state);
say("registered again", await register((options) => registerer.register(options)), registerer.state);

const call = new Inviter(agent, UserAgent.makeURI(`sip:${callee}@${domain}`));
let endedBy = "us";
call.delegate = { onBye: (bye) => bye.accept().then(() => (endedBy = "the callee")) };
const established = reach(call, SessionState.Established);
const terminated = reach(call, SessionState.Terminated);
await call.invite({
  requestDelegate: {
    onProgress: ({ message }) => say("progress", message.statusCode),
    onReject: ({ message }) => fail(`INVITE: ${message.statusCode} ${message.reasonPhrase}`),
  },
});
await established;
say("established", answer.split("\r\n")[0]);
if (!hangsUp) {
  // Long enough for a keep-alive within the call.
  await new Promise((resolve) => setTimeout(resolve, 1_200));
  await call.bye();
}
await terminated;
say("ended by", endedBy);

const unregistered = reach(registerer, RegistererState.Unregistered);
await register((options) => registerer.unregister(options));
await unregistered;
say("unregistered");
if (!hangsUp) {
  say("keep-alives answered", keepAlives > 0);
}
await agent.stop();
say("closed");
