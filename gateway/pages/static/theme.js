// Before the first paint: the colours that were chosen last.
"use strict";
try {
  const chosen = localStorage.getItem("gateway-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch { /* storage is off: the system's colours stand */ }
