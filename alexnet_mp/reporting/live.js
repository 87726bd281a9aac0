"use strict"
// Asks for the page again every few seconds, and puts the sections that changed in place of the old ones. A page that
// nobody looks at doesn't ask.
const SECONDS = 3

async function update() {
  if (!document.hidden) {
    const silent = document.getElementById("silent")
    try {
      const answer = await fetch("/", {cache: "no-store"})
      if (!answer.ok) throw new Error(answer.status)
      const next = new DOMParser().parseFromString(await answer.text(), "text/html")
      for (const section of next.querySelectorAll("main > section")) {
        const shown = document.getElementById(section.id)
        if (shown.outerHTML !== section.outerHTML) shown.replaceWith(section)
      }
      document.title = next.title
      silent.hidden = true
    } catch {
      silent.hidden = false
    }
  }
  setTimeout(update, 1000 * SECONDS)
}

document.addEventListener("DOMContentLoaded", () => setTimeout(update, 1000 * SECONDS))
