// The list refreshes itself, and files are uploaded one after another.
"use strict";

const WAIT_MS = 4000;
const drop = document.getElementById("drop");
const uploads = document.getElementById("uploads");
const waiting = [];
let sending = false;

function localTimes() {
  for (const time of document.querySelectorAll("time")) {
    const when = new Date(time.dateTime);
    time.textContent = when.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  }
}

async function refresh() {
  const lost = document.getElementById("lost");
  try {
    const response = await fetch("/", { headers: { Accept: "text/html" } });
    if (!response.ok) throw new Error(response.status);
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const before = document.getElementById("studies");
    const after = page.getElementById("studies");
    for (const open of before.querySelectorAll("details[open]")) {
      const same = after.querySelector(`details[data-study="${open.dataset.study}"]`);
      if (same) same.open = true;
    }
    const focused = before.contains(document.activeElement) && document.activeElement.outerHTML;
    before.replaceWith(after);
    localTimes();
    if (focused) {
      [...after.querySelectorAll("a, button, summary")].find((e) => e.outerHTML === focused)?.focus();
    }
    lost.hidden = true;
  } catch {
    lost.hidden = false;
  }
}

function row(file) {
  const item = document.createElement("li");
  const name = document.createElement("span");
  name.className = "name";
  name.textContent = file.name;
  const bar = document.createElement("progress");
  bar.max = 1;
  bar.value = 0;
  bar.setAttribute("aria-label", `Upload of ${file.name}`);
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Cancel";
  item.append(name, bar, button);
  uploads.append(item);
  return { item, bar, button };
}

function fail(shown, text) {
  const said = document.createElement("span");
  said.className = "said";
  said.textContent = text;
  shown.bar.remove();
  shown.button.textContent = "Dismiss";
  shown.button.onclick = () => shown.item.remove();
  shown.item.insertBefore(said, shown.button);
}

function next() {
  if (sending || !waiting.length) return;
  const { file, shown } = waiting.shift();
  const request = new XMLHttpRequest();
  sending = true;
  shown.button.onclick = () => request.abort();
  request.upload.onprogress = (event) => {
    if (event.lengthComputable) shown.bar.value = event.loaded / event.total;
  };
  request.onload = () => {
    if (request.status === 202) {
      shown.item.remove();
      refresh();
      return;
    }
    let told = {};
    try {
      told = JSON.parse(request.responseText);
    } catch { /* a proxy answered */ }
    fail(shown, told.message ? `${told.message} ${told.remedy}` : `The server answered ${request.status}.`);
  };
  request.onerror = () => fail(shown, "The connection was lost. Upload it again.");
  request.onabort = () => shown.item.remove();
  request.onloadend = () => {
    sending = false;
    next();
  };
  request.open("POST", "/studies");
  request.setRequestHeader("Content-Type", "application/octet-stream");
  request.send(file);
}

function add(files) {
  const most = Number(drop.dataset.maxMb);
  for (const file of files) {
    const shown = row(file);
    if (file.size > most * 1e6) {
      fail(shown, `It is larger than the ${most} MB that may be uploaded.`);
      continue;
    }
    const entry = { file, shown };
    shown.button.onclick = () => {
      waiting.splice(waiting.indexOf(entry), 1);
      shown.item.remove();
    };
    waiting.push(entry);
  }
  next();
}

for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  add(event.dataTransfer.files);
});
document.getElementById("file").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = "";
});
document.addEventListener("click", async (event) => {
  const id = event.target.dataset?.leave;
  if (!id || !window.confirm("Remove this study and its results?")) return;
  await fetch(`/studies/${id}`, { method: "DELETE" }).catch(() => {});
  refresh();
});

localTimes();
(async () => {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, WAIT_MS));
    if (!document.hidden) await refresh();
  }
})();
