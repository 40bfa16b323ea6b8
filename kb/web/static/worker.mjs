// Matches pastes off the page's own thread. Nothing leaves the machine: after loading, no request is made.
import { loadPyodide } from "../pyodide/pyodide.mjs";

const here = new URL(".", import.meta.url);

async function bytes(path) {
  const answer = await fetch(new URL(path, here));
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.arrayBuffer();
}

async function start() {
  const [python, code, index] = await Promise.all([
    loadPyodide({ indexURL: new URL("../pyodide/", here).href }),
    bytes("../match/kb.zip"),
    bytes("../provenfix.sqlite"),
  ]);
  python.unpackArchive(code, "zip", { extractDir: "/kb-code" });
  python.FS.writeFile("/kb.sqlite", new Uint8Array(index));
  python.runPython("import sys; sys.path.insert(0, '/kb-code')");
  return python.pyimport("answering");
}

const ready = start();
ready.then(() => self.postMessage({ ready: true }), (error) => self.postMessage({ failed: String(error) }));

self.onmessage = async ({ data }) => {
  try {
    const answering = await ready;
    const text = data.whole ? answering.whole(data.text) : answering.answer(data.text, data.locale);
    self.postMessage({ id: data.id, answer: JSON.parse(text) });
  } catch (error) {
    self.postMessage({ id: data.id, failed: String(error) });
  }
};
