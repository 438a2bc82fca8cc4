// A client by `ws` for Node.js: `node reader.cjs URL DEFLATE` writes each message as a 4-byte length, T or B, and its bytes.
const WebSocket = require("ws");

const [url, deflate] = process.argv.slice(2);
const socket = new WebSocket(url, "rbkit", { perMessageDeflate: deflate === "true", maxPendingAutoPongs: 0 });
socket.on("open", () => {
  if ((socket.extensions !== "") !== (deflate === "true")) throw new Error(`extensions: ${socket.extensions}`);
});
socket.on("message", (data, isBinary) => {
  const head = Buffer.from([0, 0, 0, 0, (isBinary ? "B" : "T").charCodeAt(0)]);
  head.writeUInt32BE(data.length);
  process.stdout.write(head);
  process.stdout.write(data);
  socket.ping("between");
});
