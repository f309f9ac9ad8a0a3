// Counts the questions of which the first answer that was opened is the right one.
(() => {
  const score = document.getElementById("quiz-score"), first = new Map();
  if (!score) return;
  const questions = document.querySelectorAll(".question");
  const show = () => { score.textContent = `Right at the first answer: ${[...first.values()].filter(Boolean).length} of ${first.size}; ${questions.length - first.size} to go`; };
  for (const question of questions) for (const answer of question.querySelectorAll(".answer")) {
    answer.addEventListener("toggle", () => {
      if (answer.open && !first.has(question)) first.set(question, answer.classList.contains("right"));
      show();
    });
  }
  show();
})();
